// data: {title, notice, tiles, facts, numbers, numbers_note, pictures, reasons, examples, dropped_note, axes, columns,
// clips_note, sounds, details}; a sound is a row of the table too; see diffaudio/corpus/inspect/page.py
const chosen = Object.fromEntries(data.axes.map((axis) => [axis.name, new Set(axis.values)]));
const sorted = { column: null, ascending: true };
let wanted = "";

const passes = (row) => data.axes.every((axis) => chosen[axis.name].has(row[axis.name]));
const fits = (row) => !wanted || [row.source, row.id, row.caption, row.reason].some((text) => text && text.toLowerCase().includes(wanted));

function fill(table, columns, rows, sorting, changed) {
  table.tHead.replaceChildren(make("tr", {}, ...columns.map((each) => heading(table, each, sorting, changed))));
  const body = inOrder(rows, sorting).map((row) => make("tr", {}, ...columns.map((column) => cell(row, column))));
  table.tBodies[0].replaceChildren(...body);
}

// -- what was dropped

const reasons = new Set(data.reasons.map((row) => row.reason));
const REASONS = [
  { name: "reason", title: "reason", text: true },
  { name: "lines", title: "clips or files", exact: true, direction: 1 },
  { name: "part", title: "share, %", direction: 1 },
  { name: "seconds", title: "seconds", direction: 1 },
];
const EXAMPLES = [
  { name: "source", title: "source", text: true },
  { name: "start_s", title: "from, s" },
  { name: "duration_s", title: "duration, s" },
  { name: "reason", title: "reason", text: true },
  { name: "detail", title: "detail", text: true },
];
const sortedReasons = { column: "lines", ascending: false };
const sortedExamples = { column: null, ascending: true };

function showDropped() {
  byId("dropped-note").textContent = data.dropped_note;
  const none = data.reasons.length === 0;
  for (const part of document.querySelectorAll("#dropped .scroll, #dropped form")) part.hidden = none;
  fill(byId("reasons"), REASONS, data.reasons, sortedReasons, showDropped);
  const rows = data.examples.filter((row) => reasons.has(row.reason));
  fill(byId("examples"), EXAMPLES, rows, sortedExamples, showDropped);
}

// -- clips

function showFilters() {
  const form = byId("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(...data.axes.filter((each) => each.values.length > 1).map((axis) => chips(axis, chosen, refresh)));
  const search = searchBox("Source or caption", [], (text) => {
    wanted = text;
    refresh();
  });
  const reset = make("button", { type: "button", id: "reset" }, "Show all");
  reset.addEventListener("click", () => {
    choose(form, data.axes, chosen, () => true);
    byId("wanted").value = wanted = "";
    refresh();
  });
  form.append(...search, reset);
  byId("order").append(make("option", { value: "" }, "of the corpus"));
  byId("order").append(...data.columns.map((each) => make("option", { value: each.name }, each.title)));
  const choice = () => {
    Object.assign(sorted, { column: byId("order").value || null, ascending: !byId("downward").checked });
    refresh();
  };
  byId("order").addEventListener("change", choice);
  byId("downward").addEventListener("change", choice);
}

function card(sound) {
  const frames = sound.frames.map(([address, time_s]) =>
    make("img", { src: address, alt: `picture at ${number(time_s)} s`, loading: "lazy" }));
  const strip = frames.length ? make("div", { className: "frames" }, ...frames) : "";
  const still = () => make("img", { src: sound.picture, alt: "", className: "still", loading: "lazy" });
  const face = sound.address ? playButton(sound, sound.title) : still();
  const told = make("div", { className: "told" }, make("b", {}, sound.source), make("small", {}, sound.summary));
  if (sound.caption) told.append(make("q", {}, sound.caption));
  if (sound.reason) told.append(make("span", { className: "mark" }, sound.reason));
  return make("li", {}, strip, face, told);
}

function refresh() {
  shown = PAGE;
  listed = inOrder(data.sounds.filter((row) => passes(row) && fits(row)), sorted);
  byId("order").value = sorted.column ?? "";
  byId("downward").checked = !sorted.ascending;
  fill(byId("clips"), data.columns, listed, sorted, refresh);
  showSounds();
  byId("count").textContent = `${listed.length} of ${data.sounds.length} clips`;
}

// -- everything

function showNumbers() {
  const head = data.numbers.head.map((text, place) => make("th", { scope: "col", className: place ? "plain" : "plain text" }, text));
  byId("numbers").tHead.append(make("tr", {}, ...head));
  const rows = data.numbers.rows.map(([name, ...values]) =>
    make("tr", {}, make("th", { scope: "row", className: "text" }, name), ...values.map((value) => make("td", {}, value))));
  byId("numbers").tBodies[0].append(...rows);
  byId("numbers-note").textContent = data.numbers_note;
  const figures = data.pictures.map(({ file, alt }) => make("figure", {}, make("img", { src: file, alt, loading: "lazy" })));
  byId("pictures").append(...figures);
}

function showDetails() {
  for (const [caption, rows] of Object.entries(data.details)) {
    const lines = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { className: "text" }, value)));
    byId("details").append(make("table", {}, make("caption", {}, caption), make("tbody", {}, ...lines)));
  }
}

showTitle();
byId("notice").hidden = !data.notice;
byId("notice").textContent = data.notice;
byId("tiles").append(...data.tiles.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
showNumbers();
if (data.reasons.length > 1) {
  const axis = { name: "reason", title: "Show", values: data.reasons.map((row) => row.reason) };
  byId("reason-filters").append(chips(axis, { reason: reasons }, showDropped));
}
byId("reason-filters").addEventListener("submit", (event) => event.preventDefault());
showDropped();
byId("clips-note").textContent = data.clips_note;
showFilters();
showDetails();
showPlayer();
byId("player").hidden = !data.sounds.some((sound) => sound.address);
refresh();
