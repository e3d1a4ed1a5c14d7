import threading

import pytest
from hostile import jpeg
from served import FakePredictor, expected

from catalens.serving import Batcher, PredictorError, QueueFullError


@pytest.fixture
def held():
    """A batcher of at most 4 pictures a batch and 8 waiting, whose predictor waits for `go_on`."""
    predictor = FakePredictor(poison=frozenset({jpeg(13)}))
    predictor.go_on.clear()
    batcher = Batcher(predictor, 4, 8, 1000, 2000)
    batcher.start()
    yield batcher, predictor
    predictor.go_on.set()
    if batcher.alive:
        batcher.close()


def busy(batcher: Batcher, predictor: FakePredictor) -> None:
    """Give the predictor something to hold on to, so that what follows waits."""
    batcher.submit(some(0))
    while not predictor.batches:
        threading.Event().wait(0.001)


def some(*numbers: int, pixels: int = 100) -> list[tuple[bytes, int]]:
    """Pictures, each with the pixels of its header."""
    return [(jpeg(number), pixels) for number in numbers]


def titles(futures) -> list[str]:
    return [future.result(30).values["title"] for future in futures]


def test_waiting_pictures_share_batches_and_each_gets_its_own_answer(held):
    batcher, predictor = held
    busy(batcher, predictor)
    numbers = [[1, 2], [3], [4, 5, 6]]
    requests = [batcher.submit(some(*each)) for each in numbers]
    assert batcher.depth == 6
    predictor.go_on.set()
    assert [titles(r) for r in requests] == [[expected(jpeg(n))["title"] for n in some] for some in numbers]
    assert [len(batch) for batch in predictor.batches] == [1, 4, 2]
    assert batcher.depth == 0


def test_a_full_queue_takes_all_pictures_of_a_request_or_none(held):
    batcher, predictor = held
    busy(batcher, predictor)
    batcher.submit(some(*range(7)))
    with pytest.raises(QueueFullError) as full:
        batcher.submit(some(8, 9))
    assert 1 <= full.value.seconds <= 30
    assert batcher.depth == 7
    batcher.submit(some(8))


def test_what_is_cancelled_makes_room_and_is_never_read(held):
    batcher, predictor = held
    busy(batcher, predictor)
    left = batcher.submit(some(*range(1, 9)))
    for future in left:
        assert future.cancel()
    assert batcher.depth == 0
    kept = batcher.submit(some(20))
    predictor.go_on.set()
    assert titles(kept) == [expected(jpeg(20))["title"]]
    assert predictor.batches == [[jpeg(0)], [jpeg(20)]]


def test_when_all_that_waits_is_cancelled_the_thread_lives_on(held):
    batcher, predictor = held
    busy(batcher, predictor)
    for future in batcher.submit(some(1, 2)):
        future.cancel()
    predictor.go_on.set()
    for number in range(30, 60):  # some of these are cancelled within the few milliseconds that a batch is waited for
        (future,) = batcher.submit(some(number))
        future.cancel()
    assert titles(batcher.submit(some(3))) == [expected(jpeg(3))["title"]]
    assert batcher.alive


def test_one_picture_that_the_model_fails_on_does_not_fail_its_neighbours(held, caplog):
    batcher, predictor = held
    busy(batcher, predictor)
    futures = batcher.submit(some(1, 13, 2))
    predictor.go_on.set()
    assert titles([futures[0], futures[2]]) == [expected(jpeg(n))["title"] for n in (1, 2)]
    assert isinstance(futures[1].exception(30), PredictorError)
    assert "RuntimeError: out of memory" in caplog.text
    assert titles(batcher.submit(some(4))) == [expected(jpeg(4))["title"]]


def test_a_predictor_that_loses_an_answer_gives_none_to_the_wrong_picture():
    class Forgetful(FakePredictor):
        def predict(self, pictures, progress=None):
            return super().predict(pictures)[: max(1, len(pictures) - 1)]

    forgetful = Batcher(Forgetful(), 4, 8, 1000, 2000)
    forgetful.start()
    try:
        numbers = range(1, 5)
        futures = forgetful.submit(some(*numbers))
        assert titles(futures) == [expected(jpeg(n))["title"] for n in numbers]
    finally:
        forgetful.close()


def test_closing_reads_what_waits(held):
    batcher, predictor = held
    busy(batcher, predictor)
    futures = batcher.submit(some(*range(1, 7)))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    predictor.go_on.set()
    closing.join(30)
    assert titles(futures) == [expected(jpeg(n))["title"] for n in range(1, 7)]
    assert not batcher.alive


def test_a_batch_and_the_queue_hold_so_many_pixels_and_no_more(held):
    batcher, predictor = held
    busy(batcher, predictor)
    requests = [batcher.submit(some(1, 2, pixels=450)), batcher.submit(some(3)), batcher.submit(some(4, pixels=900))]
    with pytest.raises(QueueFullError):
        batcher.submit(some(5, 6))  # 1,900 pixels wait, of 2,000
    requests.append(batcher.submit(some(5)))
    assert batcher.depth == 5
    predictor.go_on.set()
    assert [titles(r) for r in requests] == [[expected(jpeg(n))["title"] for n in r] for r in ([1, 2], [3], [4], [5])]
    assert predictor.batches == [[jpeg(0)], [jpeg(1), jpeg(2), jpeg(3)], [jpeg(4), jpeg(5)]]


def test_a_picture_above_a_batch_is_read_alone(held):
    batcher, predictor = held
    busy(batcher, predictor)
    futures = batcher.submit(some(1, pixels=1500)) + batcher.submit(some(2))
    predictor.go_on.set()
    assert len(titles(futures)) == 2
    assert predictor.batches == [[jpeg(0)], [jpeg(1)], [jpeg(2)]]
