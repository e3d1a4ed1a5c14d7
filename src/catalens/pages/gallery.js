// Finds rows of the gallery. A row is what gallery.py wrote:
//   [id, picture, right, [[truth, [[text, right, off, confidence, interval, review], ...]], ...],
//    [[answer, reason], ...], note, tags of each choice, key of each order]
// Everything from a table is put into the page as text, never as markup.
"use strict";
(() => {
  const PER_PAGE = 24;
  const at = (id) => document.getElementById(id);
  if (!at("rows")) return; // runs that differ in no row have no gallery
  const rows = JSON.parse(at("rows").textContent);
  const [TEXTS, TAGS, KEYS] = [rows.map(words), 6, 7];
  const choices = [...document.querySelectorAll(".choice")];
  const dialog = at("row");
  let found = rows.map((_, index) => index);
  let page = 0;
  let open = 0;

  function words([id, , , pairs, answers]) {
    const values = pairs.flatMap(([truth, predicted]) => [truth, ...predicted.map(([text]) => text)]);
    return [id, ...values, ...answers.flat()].join("\n").toLocaleLowerCase();
  }

  function find() {
    const wanted = at("search").value.trim().toLocaleLowerCase();
    const picked = choices.map((choice) => Number(choice.value));
    found = [];
    rows.forEach((row, index) => {
      const belongs = picked.every((option, choice) => !option || row[TAGS][choice].includes(option));
      if (belongs && TEXTS[index].includes(wanted)) found.push(index);
    });
    const order = at("order");
    const down = order.selectedOptions[0].dataset.down === "1";
    const sign = down === (at("reverse").getAttribute("aria-pressed") === "true") ? 1 : -1;
    const key = (index) => rows[index][KEYS][order.selectedIndex];
    found.sort((a, b) => {
      if (key(a) === null || key(b) === null) return (key(a) === null) - (key(b) === null);
      return sign * (key(a) - key(b));
    });
    show(0);
  }

  function show(wanted) {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(wanted, 0), pages - 1);
    const first = page * PER_PAGE;
    at("cards").replaceChildren(...found.slice(first, first + PER_PAGE).map(card));
    at("count").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
    at("place").textContent = `page ${page + 1} of ${pages}`;
    at("pager").hidden = pages === 1;
    at("earlier").setAttribute("aria-disabled", page === 0);
    at("later").setAttribute("aria-disabled", page === pages - 1);
  }

  function turn(by) {
    const before = page;
    show(page + by);
    if (page !== before) at("finder").scrollIntoView({ block: "start" });
  }

  function card(index, place) {
    const copy = at("card").content.cloneNode(true);
    const item = copy.querySelector(".card");
    item.className = rows[index][2] ? "card right" : "card wrong";
    fill(item, rows[index]);
    const button = item.querySelector(".open");
    button.setAttribute("aria-label", `Look at ${rows[index][0]}`);
    button.addEventListener("click", () => look(page * PER_PAGE + place));
    return item;
  }

  function fill(root, [id, picture, , pairs, answers]) {
    const image = root.querySelector("img");
    if (picture) image.src = picture;
    image.alt = `Picture of ${id}`;
    image.hidden = !picture;
    root.querySelector(".missing").hidden = Boolean(picture);
    root.querySelector(".id").textContent = id;
    root.querySelectorAll(".pair").forEach((pair, field) => fillPair(pair, pairs[field]));
    root.querySelectorAll(".answer").forEach((answer, run) => {
      const [text, reason] = answers[run];
      answer.querySelector("pre").textContent = text || "(nothing)";
      answer.querySelector(".reason bdi").textContent = reason;
      answer.querySelector(".reason").hidden = !reason;
    });
  }

  function fillPair(pair, [truth, predicted]) {
    pair.querySelectorAll(".said").forEach((node, run) => {
      const [text, right, off, confidence, interval, review] = predicted[run];
      node.className = right ? "said ok" : "said off";
      node.querySelector(".mark + .sr").textContent = right ? "right: " : "wrong: ";
      node.querySelector(".value").textContent = text || "no answer";
      put(node.querySelector(".by"), off);
      put(node.querySelector(".sure > span"), confidence, node.querySelector(".sure"));
      put(node.querySelector(".between > span"), interval, node.querySelector(".between"));
      node.querySelector(".flag").hidden = !review;
    });
    put(pair.querySelector(".truth bdi"), truth);
    pair.querySelector(".truth").hidden = predicted.every(([, right, off]) => right && !off);
  }

  function put(node, text, whole = node) {
    node.textContent = text;
    whole.hidden = !text;
  }

  function look(place) {
    if (place < 0 || place >= found.length) return;
    open = place;
    fill(dialog, rows[found[place]]);
    at("before").setAttribute("aria-disabled", place === 0);
    at("after").setAttribute("aria-disabled", place === found.length - 1);
    if (!dialog.open) dialog.showModal();
  }

  at("search").addEventListener("input", find);
  for (const choice of [...choices, at("order")]) choice.addEventListener("change", find);
  at("finder").querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  at("reverse").addEventListener("click", ({ currentTarget: button }) => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    find();
  });
  at("earlier").addEventListener("click", () => turn(-1));
  at("later").addEventListener("click", () => turn(1));
  at("before").addEventListener("click", () => look(open - 1));
  at("after").addEventListener("click", () => look(open + 1));
  at("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") look(open - 1);
    if (event.key === "ArrowRight") look(open + 1);
  });
  dialog.addEventListener("close", () => {
    show(Math.floor(open / PER_PAGE)); // focus goes to the row that was looked at last
    at("cards").children[open % PER_PAGE].querySelector(".open").focus();
  });

  at("finder").hidden = false;
  find();
})();
