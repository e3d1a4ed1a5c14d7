"""The command that answers others: `serve`."""

from pathlib import Path
from typing import Annotated

import typer

from catalens.cli.app import accept_error_of, app, say
from catalens.config import from_flags


@app.command(epilog="Example:  catalens serve\n\nExample:  catalens serve runs/demo --port 8080 --accept-error 5%")
def serve(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a finished run; the tiny model that ships here by default.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures read together, at most.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Pictures that may wait; more get 429.")] = 256,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Largest body of a request.")] = 32 * 2**20,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Largest picture, by its header; 64000000 at most.")
    ] = 16_000_000,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a body to come (408), then for its answer (503).")
    ] = 60,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures by URL, from public addresses only.")
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients send; else CATALENS_TOKEN.")
    ] = None,
    accept_error: Annotated[
        str | None, typer.Option(help="Share of wrong values borne among those not marked for review, such as 5%.")
    ] = None,
) -> None:
    """Answer POST /v1/predict, and show a page to drop photos on, at http://127.0.0.1:8000.

    SIGTERM or Ctrl-C finishes what was accepted, then ends; a second one ends at once.
    """
    from catalens.inference import load_predictor
    from catalens.serving import ServeSettings, create_app, open_socket, read_card, run_server
    from catalens.serving.server import address_of, names_for, read_token

    token = read_token(token_file)
    settings = from_flags(
        ServeSettings,
        {
            "batch_size": batch_size,
            "queue": queue,
            "max_bytes": max_bytes,
            "max_pixels": max_pixels,
            "timeout": timeout,
            "allow_urls": allow_urls,
            "token": token,
            "hosts": names_for(host, token),
        },
    )
    listening = open_socket(host, port)
    predictor = load_predictor(run, batch_size=batch_size, accept_error=accept_error_of(accept_error))
    card = read_card(run)
    print(address_of(listening), flush=True)
    if accept_error and not predictor.calibrated:
        say("not calibrated: --accept-error marks every value for review; run `catalens evaluate` on a run")
    say(f"serving {card.name}; Ctrl-C finishes what was accepted and ends")
    run_server(create_app(predictor, settings, card), listening)
