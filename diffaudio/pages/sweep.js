// data: {title, facts, left_out, axes, columns, metrics, rows, prompts, sounds}; see diffaudio/sweep/page.py
const chosen = Object.fromEntries(data.axes.map((axis) => [axis.name, new Set(axis.values)]));
const sorted = { column: null, ascending: true };
let wanted = "";
let ordered = [];

const setting = (axis, value) => (value === null ? "–" : axis.unit ? `${value} ${axis.unit}` : String(value));
const passes = (row) => data.axes.every((axis) => chosen[axis.name].has(row[axis.name]));

// -- filters

function showFilters() {
  const form = byId("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(...data.axes.filter((each) => each.values.length > 1).map((axis) => chips(axis, chosen, refresh)));
  const search = searchBox("Prompt", [...new Set(data.prompts.map((prompt) => prompt.text))], (text) => {
    wanted = text;
    refresh();
  });
  const reset = make("button", { type: "button", id: "reset" }, "Show all");
  reset.addEventListener("click", () => only(null));
  form.append(...search, reset);
}

function only(row) {
  choose(byId("filters"), data.axes, chosen, (axis, value) => row === null || row[axis.name] === value);
  if (row === null) byId("wanted").value = wanted = "";
  refresh();
}

// -- the table

const visible = new Set(data.columns.filter((column) => column.visible).map((column) => column.name));
const columns = () => data.columns.filter((column) => visible.has(column.name));

function showColumnChoice() {
  for (const column of data.columns) {
    const box = make("input", { type: "checkbox", checked: visible.has(column.name) });
    box.addEventListener("change", () => {
      if (box.checked) visible.add(column.name);
      else visible.delete(column.name);
      showTable();
    });
    document.querySelector("#columns .choices").append(make("label", {}, box, ` ${column.title}`));
  }
}

function measuredCell(row, column, best) {
  const value = row[column.name];
  const element = cell(row, column);
  if (typeof value === "number") {
    numberCell(element, { low: row[`${column.name}_low`], high: row[`${column.name}_high`], n: row[`${column.name}_n`] });
  }
  if (typeof value === "number" && value === best[column.name]) element.classList.add("best");
  return element;
}

function bests(rows) {
  const best = {};
  for (const column of data.columns.filter((each) => each.direction !== 0)) {
    const values = rows.map((row) => row[column.name]).filter((value) => typeof value === "number");
    if (new Set(values).size > 1) best[column.name] = column.direction > 0 ? Math.max(...values) : Math.min(...values);
  }
  return best;
}

function showTable() {
  ordered = inOrder(data.rows.filter((row) => row.kind === "evaluated" && passes(row)), sorted);
  const best = bests(ordered);
  const table = byId("results");
  table.tHead.replaceChildren(make("tr", {}, make("td", {}), ...columns().map((each) => heading(table, each, sorted, refresh))));
  const body = ordered.map((row) => {
    const listen = make("button", { type: "button" }, "only this");
    listen.setAttribute("aria-label", `Only ${row.combination}`);
    listen.addEventListener("click", () => only(row));
    return make("tr", {}, make("td", {}, listen), ...columns().map((column) => measuredCell(row, column, best)));
  });
  table.tBodies[0].replaceChildren(...body);
  const others = data.rows.filter((row) => row.kind !== "evaluated").map((row) => {
    const cells = columns().map((column) => measuredCell(row, column, {}));
    cells[0].textContent = row.combination;
    return make("tr", {}, make("td", {}), ...cells);
  });
  table.tFoot.replaceChildren(...others);
  byId("results-note").textContent =
    `${ordered.length} combinations; intervals hold 95 %, n is the number of sounds; with few (fewer than ${FEW}) a number can move far. The best of a column is bold.`;
}

// -- pictures

function showPictures() {
  const metric = data.metrics.find((each) => each.name === byId("metric").value);
  const figures = Object.entries(metric ? metric.pictures : {}).map(([what, file]) => {
    const alt = `${metric.name} against ${what}; the numbers are in the table above`;
    return make("figure", {}, make("img", { src: `pictures/${file}`, alt, className: what === "time" ? "narrow" : "" }));
  });
  byId("pictures").replaceChildren(...figures);
}

// -- sounds

function told(sound) {
  const row = data.rows[sound.row];
  const axes = data.axes.filter((axis) => axis.values.length > 1 || axis.name === "sampler");
  return axes.map((axis) => (axis.short ? `${axis.short} ${row[axis.name]}` : setting(axis, row[axis.name]))).join(", ");
}

function card(sound) {
  const prompt = data.prompts[sound.prompt].text + (sound.take > 1 ? ` (take ${sound.take})` : "");
  const recognised = sound.recognised ? make("small", {}, `recognised as ${sound.recognised}`) : "";
  const play = playButton(sound, `${prompt}, ${told(sound)}`);
  return make("li", {}, play, make("div", { className: "told" }, make("b", {}, prompt), make("small", {}, told(sound)), recognised));
}

function listSounds() {
  const rank = new Map(ordered.map((row, place) => [data.rows.indexOf(row), place])); // as the table stands
  listed = data.sounds.filter((sound) => {
    const fits = !wanted || data.prompts[sound.prompt].text.toLowerCase().includes(wanted);
    return fits && passes(data.rows[sound.row]);
  });
  const key = byId("order").value === "prompt"
    ? (sound) => [sound.prompt, sound.take, rank.get(sound.row)]
    : (sound) => [rank.get(sound.row), sound.prompt, sound.take];
  listed = listed.map((sound) => [key(sound), sound]);
  listed.sort(([a], [b]) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
  listed = listed.map(([, sound]) => sound);
}

// -- everything

function refresh() {
  shown = PAGE;
  showTable();
  listSounds();
  showSounds();
}

for (const sound of data.sounds) {
  Object.assign(sound, { address: sound.path + sound.suffix, picture: `${sound.path}.png` });
  sound.title = `${data.prompts[sound.prompt].text} – ${told(sound)}`;
}
showTitle();
const leftOut = Object.entries(data.left_out);
byId("left-out").hidden = leftOut.length === 0;
document.querySelector("#left-out summary").textContent = `Left out: ${leftOut.length}`;
document.querySelector("#left-out ul").append(...leftOut.map(([name, reason]) => make("li", {}, `${name}: ${reason}`)));
byId("metric").append(...data.metrics.map((metric) => make("option", { value: metric.name }, metric.name)));
byId("metric").addEventListener("change", showPictures);
byId("order").addEventListener("change", refresh);
showFilters();
showColumnChoice();
showPlayer();
showPictures();
refresh();
