// Photos -> POST /v1/predict in small groups -> cards whose values can be corrected -> CSV.
// Whatever comes from a file's name or from the model is put into the page as text, never as markup.
"use strict";

const at = (id) => document.getElementById(id);
const fields = JSON.parse(at("tool").dataset.fields);
const groupSize = Number(at("tool").dataset.group);
const mostBytes = Number(at("tool").dataset.bytes) - 65536; // a form is larger than its files
const MOST_TRIES = 60;

const photos = []; // {files, texts, card, state, error, values: {column: {value, input, ...}}}
let next = 0; // the first photo that was not sent
let running = false;
let token = "";
let tokenGiven = null;
let calibrated = true;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function add(chosen) {
  const texts = [...document.querySelectorAll(".given")].map((input) => [input.name, input.value.trim()]);
  const products = at("together").checked && chosen.length ? [[...chosen]] : [...chosen].map((file) => [file]);
  for (const files of products) {
    const state = element("p", { className: "state", textContent: "waiting" });
    const images = files.map((file) => {
      const image = element("img", { alt: `Photo ${file.name}`, decoding: "async", src: URL.createObjectURL(file) });
      image.onerror = () => image.replaceWith(element("span", { textContent: "no preview" }));
      return image;
    });
    const name = element("p", { className: "file", textContent: nameOf(files) });
    const pictures = element("div", { className: files.length > 1 ? "picture several" : "picture" }, ...images);
    const card = element("li", { className: "card" }, pictures, name, state);
    photos.push({ files, texts, card, state, error: null, values: null });
    at("results").append(card);
  }
  if (!running) run();
}

const nameOf = (files) => files.map((file) => file.name).join(", ");
const sizeOf = ({ files }) => files.reduce((sum, file) => sum + file.size, 0);
const alike = (one, other) => {
  const alone = one.files.length === 1 && other.files.length === 1;
  return alone && JSON.stringify(one.texts) === JSON.stringify(other.texts);
};

at("choose").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  add(event.dataTransfer.files);
});

async function run() {
  running = true;
  while (next < photos.length) {
    const group = [photos[next++]];
    let bytes = sizeOf(group[0]);
    while (next < photos.length && group.length < groupSize && bytes + sizeOf(photos[next]) <= mostBytes) {
      if (!alike(group[0], photos[next])) break;
      bytes += sizeOf(photos[next]);
      group.push(photos[next++]);
    }
    for (const photo of group) photo.state.textContent = "reading …";
    tell();
    try {
      if (bytes > mostBytes) throw new Error(`larger than ${Math.floor(mostBytes / 2 ** 20)} MB`);
      const answer = await send(group);
      calibrated = answer.calibrated;
      group.forEach((photo, i) => show(photo, answer.predictions[i]));
    } catch (error) {
      for (const photo of group) show(photo, { error: error.message });
    }
    tell();
  }
  running = false;
}

async function send(group) {
  for (let tries = 1; ; tries++) {
    const form = new FormData();
    for (const file of group.flatMap(({ files }) => files)) form.append("pictures", file, file.name);
    for (const [name, text] of group[0].texts) form.append(name, text);
    if (group[0].files.length > 1) form.append("together", "true");
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let answer = null;
    try {
      answer = await fetch("/v1/predict", { method: "POST", body: form, headers });
      if (answer.ok) return await answer.json();
    } catch {
      answer = null; // the connection failed, before the answer or within it
    }
    if (answer?.status === 401) {
      await askForToken();
      continue;
    }
    const after = answer === null ? 1 : Number(answer.headers.get("Retry-After"));
    if (!after || tries === MOST_TRIES) throw new Error(await reason(answer));
    const seconds = Math.min(30, after);
    tell(answer ? `the server is busy, trying again in ${seconds} s` : "the server cannot be reached, trying again");
    await new Promise((done) => setTimeout(done, 1000 * seconds));
  }
}

async function reason(answer) {
  if (answer === null) return "the server cannot be reached";
  const { detail } = await answer.json().catch(() => ({}));
  return typeof detail === "string" ? detail : `the server answered ${answer.status}`;
}

function askForToken() {
  at("token").hidden = false;
  at("secret").focus();
  tell("give the token of this server to go on");
  return new Promise((given) => (tokenGiven = given));
}

at("token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("secret").value.trim();
  at("token").hidden = true;
  tokenGiven();
});

function show(photo, prediction) {
  photo.error = prediction.error;
  if (prediction.error) {
    photo.card.classList.add("failed");
    photo.state.textContent = `Cannot be read: ${prediction.error}`;
    return;
  }
  photo.values = {};
  photo.state.remove();
  for (const field of fields) photo.card.append(fieldOf(photo, field, prediction.fields[field.column]));
  mark(photo);
}

function fieldOf(photo, field, answer) {
  const id = `${field.column}-${photos.indexOf(photo)}`;
  const written = String(answer.value);
  const input = element(field.kind === "text" ? "textarea" : "input", { id, value: written, rows: 2 });
  const name = element("div", { className: "name" }, element("label", { htmlFor: id, textContent: field.label }));
  const known = { ...answer, input, edited: false, place: element("div", { className: "field" }, name, input) };
  photo.values[field.column] = known;
  if (answer.needs_review) {
    known.flag = element("button", { type: "button", className: "flag" });
    known.flag.addEventListener("click", () => {
      known.needs_review = !known.needs_review;
      mark(photo);
    });
    name.append(known.flag);
  }
  input.addEventListener("input", () => {
    known.edited = input.value !== written;
    known.needs_review = answer.needs_review && !known.edited; // who corrected it has looked
    mark(photo);
  });
  if (answer.confidence !== null) {
    const bar = element("i", { ariaHidden: "true" });
    bar.style.setProperty("--share", answer.confidence);
    const short = (number) => String(Number(number.toPrecision(4)));
    const range = answer.low == null ? "" : ` · ${short(answer.low)} to ${short(answer.high)}`;
    const percent = Math.min(99, Math.round(100 * answer.confidence));
    const shown = (answer.likeliest ?? []).slice(1).filter((one) => one.probability >= 0.01);
    const others = shown.map((one) => `${one.value} ${Math.round(100 * one.probability)} %`);
    const rest = others.length ? ` · else ${others.join(", ")}` : "";
    known.place.append(element("p", { className: "sure" }, bar, `${percent} % sure${range}${rest}`));
  }
  return known.place;
}

function mark(photo) {
  const all = Object.values(photo.values);
  for (const known of all) {
    known.place.classList.toggle("flagged", known.needs_review);
    if (!known.flag) continue;
    known.flag.textContent = known.needs_review ? "⚑ check" : "✓ checked";
    known.flag.ariaPressed = String(!known.needs_review);
  }
  photo.card.classList.toggle("review", all.some((known) => known.needs_review));
  tell();
}

function tell(hindrance = "") {
  const done = photos.filter((photo) => photo.values || photo.error);
  const failed = done.filter((photo) => photo.error).length;
  const review = at("results").querySelectorAll(".review").length;
  const parts = [`${done.length} of ${photos.length} photos done`];
  if (failed) parts.push(`${failed} failed`);
  if (review) parts.push(`${review} to check`);
  if (!calibrated) parts.push("confidences are the model’s own, not calibrated");
  if (hindrance) parts.push(hindrance);
  const text = parts.join(", ") + ".";
  if (at("status").textContent !== text) at("status").textContent = text;
  Object.assign(at("progress"), { hidden: done.length === photos.length, max: photos.length, value: done.length });
  at("download").disabled = !done.length;
}

function cell(value) {
  let text = value === null || value === undefined ? "" : String(value);
  // What a spreadsheet would take for a formula becomes text; a number is left as it is.
  if (/^[=+\-@\t\r]/.test(text) && !/^[-+]?\d+(\.\d+)?(e[-+]?\d+)?$/i.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function table() {
  const measures = fields.flatMap(({ column, kind }) =>
    ["confidence", ...(kind === "number" ? ["low", "high"] : [])].map((name) => [column, name]),
  );
  const names = fields.map((field) => field.column);
  const ends = ["needs_review", "review_fields", "edited_fields", "error"];
  const rows = [["file", ...names, ...measures.map((pair) => pair.join("_")), ...ends]];
  for (const { files, values, error } of photos.filter((photo) => photo.values || photo.error)) {
    const those = (key) => names.filter((column) => values?.[column][key]);
    const figures = measures.map(([column, name]) => values?.[column][name]);
    const review = those("needs_review");
    const last = [Boolean(review.length || error), review.join(", "), those("edited").join(", "), error];
    rows.push([nameOf(files), ...names.map((column) => values?.[column].input.value), ...figures, ...last]);
  }
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

at("download").addEventListener("click", () => {
  const file = new Blob(["\ufeff", table()], { type: "text/csv" }); // the mark by which Excel knows UTF-8
  const link = element("a", { href: URL.createObjectURL(file), download: "products.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
