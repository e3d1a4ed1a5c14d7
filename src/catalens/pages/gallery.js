// Finds cards of the gallery: `data-tags` names the options that a card belongs to, `data-keys` its place in each order.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  if (!at("cards")) return; // runs that differ in no row have no gallery
  const STEP = 24;
  const choices = [...document.querySelectorAll(".choice")];
  const cards = [...at("cards").children].map((card) => ({
    card,
    text: [...card.querySelectorAll("dd bdi, pre, .id bdi")].map((node) => node.textContent).join("\n").toLowerCase(),
    tags: card.dataset.tags.split(" "),
    keys: JSON.parse(card.dataset.keys),
  }));
  let most = STEP;

  function show() {
    const wanted = at("search").value.trim().toLowerCase();
    const picked = choices.map((choice) => choice.value).filter(Boolean);
    const key = ({ keys }) => keys[at("order").value] ?? Infinity; // what has no key comes last
    const found = cards.filter(({ text, tags }) => text.includes(wanted) && picked.every((tag) => tags.includes(tag)));
    found.sort((a, b) => key(a) - key(b) || 0);
    at("cards").replaceChildren(...found.slice(0, most).map(({ card }) => card));
    at("count").textContent = `${found.length.toLocaleString("en")} of ${cards.length.toLocaleString("en")} rows`;
    at("more").hidden = found.length <= most;
  }

  function find() {
    most = STEP;
    show();
  }

  at("search").addEventListener("input", find);
  for (const choice of [...choices, at("order")]) choice.addEventListener("change", find);
  at("finder").addEventListener("submit", (event) => event.preventDefault());
  at("more").addEventListener("click", () => {
    const first = most;
    most += STEP;
    show();
    at("cards").children[first].querySelector("summary").focus();
  });
  at("finder").hidden = false;
  find();
})();
