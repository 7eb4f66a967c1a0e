"use strict";
// data: {title, facts, left_out, axes, columns, metrics, rows, prompts, sounds}; see diffaudio/metrics/report.py
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 60;
const chosen = Object.fromEntries(data.axes.map((axis) => [axis.name, new Set(axis.values)]));
const sorted = { column: null, ascending: true };
let wanted = "";
let shown = PAGE;
let ordered = [];
let listed = [];
let playing = null;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function number(value) {
  if (value === 0) return "0";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 0.1 ? 2 : 3;
  return value.toFixed(digits);
}

const setting = (axis, value) => (value === null ? "–" : axis.unit ? `${value} ${axis.unit}` : String(value));
const passes = (row) => data.axes.every((axis) => chosen[axis.name].has(row[axis.name]));

// -- filters

function chip(axis, value) {
  const box = make("input", { type: "checkbox", checked: true, name: axis.name, value: String(value) });
  box.addEventListener("change", () => {
    if (box.checked) chosen[axis.name].add(value);
    else chosen[axis.name].delete(value);
    refresh();
  });
  return make("label", { className: "chip" }, box, make("span", {}, String(value ?? "none")));
}

function showFilters() {
  const form = byId("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const axis of data.axes.filter((each) => each.values.length > 1)) {
    const chips = axis.values.map((value) => chip(axis, value));
    form.append(make("fieldset", {}, make("legend", {}, axis.title), ...chips));
  }
  const search = make("input", { type: "search", id: "wanted", placeholder: "any" });
  search.setAttribute("list", "prompts");
  search.addEventListener("input", () => {
    wanted = search.value.trim().toLowerCase();
    refresh();
  });
  const texts = [...new Set(data.prompts.map((prompt) => prompt.text))];
  const options = make("datalist", { id: "prompts" }, ...texts.map((text) => make("option", { value: text })));
  const reset = make("button", { type: "button", id: "reset" }, "Show all");
  reset.addEventListener("click", () => only(null));
  form.append(make("label", {}, "Prompt ", search), options, reset);
}

function only(row) {
  for (const box of document.querySelectorAll("#filters .chip input")) {
    const axis = data.axes.find((each) => each.name === box.name);
    const value = axis.values.find((each) => String(each) === box.value);
    box.checked = row === null || row[axis.name] === value;
    if (box.checked) chosen[axis.name].add(value);
    else chosen[axis.name].delete(value);
  }
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

function heading(column) {
  const button = make("button", { type: "button", title: column.help }, column.title);
  button.addEventListener("click", () => {
    sorted.ascending = sorted.column === column.name ? !sorted.ascending : column.direction <= 0;
    sorted.column = column.name;
    refresh();
    document.querySelector(`#results th[data-column="${CSS.escape(column.name)}"] button`).focus();
  });
  const cell = make("th", { scope: "col", className: column.text ? "text" : "" }, button);
  cell.dataset.column = column.name;
  const order = sorted.ascending ? "ascending" : "descending";
  cell.setAttribute("aria-sort", sorted.column === column.name ? order : "none");
  return cell;
}

function cell(row, column, best) {
  const value = row[column.name];
  const measured = typeof value === "number" && !column.exact;
  const text = value === null || value === undefined ? "" : measured ? number(value) : String(value);
  const element = make("td", { className: column.text ? "text" : "" }, text);
  const [low, high] = [row[`${column.name}_low`], row[`${column.name}_high`]];
  if (typeof low === "number" && typeof high === "number") {
    element.append(make("small", {}, ` ${number(low)} to ${number(high)}`));
    element.title = `95 % interval, ${row[`${column.name}_n`]} sounds`;
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

function compare(a, b) {
  const [x, y] = [a[sorted.column], b[sorted.column]];
  if (x === y) return 0;
  if (x === null || x === undefined) return 1; // what is missing comes last, whichever way
  if (y === null || y === undefined) return -1;
  const before = typeof x === "number" ? x < y : String(x) < String(y);
  return before === sorted.ascending ? -1 : 1;
}

function showTable() {
  ordered = data.rows.filter((row) => row.kind === "evaluated" && passes(row));
  if (sorted.column) ordered.sort(compare);
  const best = bests(ordered);
  const table = byId("results");
  table.tHead.replaceChildren(make("tr", {}, ...columns().map(heading), make("td", {})));
  const body = ordered.map((row) => {
    const listen = make("button", { type: "button" }, "only this");
    listen.setAttribute("aria-label", `Only ${row.combination}`);
    listen.addEventListener("click", () => only(row));
    return make("tr", {}, ...columns().map((column) => cell(row, column, best)), make("td", {}, listen));
  });
  table.tBodies[0].replaceChildren(...body);
  const others = data.rows.filter((row) => row.kind !== "evaluated").map((row) => {
    const cells = columns().map((column) => cell(row, column, {}));
    cells[0].textContent = row.combination;
    return make("tr", {}, ...cells, make("td", {}));
  });
  table.tFoot.replaceChildren(...others);
  byId("results-note").textContent =
    `${ordered.length} combinations; intervals hold 95 %, the best number of a column is bold.`;
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
  const picture = make("img", { src: `${sound.path}.png`, alt: "", loading: "lazy", width: 250, height: 84 });
  const play = make("button", { type: "button", className: "play" }, picture);
  play.setAttribute("aria-label", `Play ${prompt}, ${told(sound)}`);
  play.setAttribute("aria-pressed", "false");
  play.addEventListener("click", () => (playing === sound && !byId("audio").paused ? byId("audio").pause() : start(sound)));
  sound.button = play;
  const heard = sound.heard ? make("small", {}, `heard as ${sound.heard}`) : "";
  return make("li", {}, play, make("div", { className: "told" }, make("b", {}, prompt), make("small", {}, told(sound)), heard));
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

function showSounds() {
  const some = listed.slice(0, shown);
  byId("sounds").replaceChildren(...some.map(card));
  byId("more").hidden = some.length === listed.length;
  byId("count").textContent = `${listed.length} sounds`;
  if (playing && !byId("audio").paused) playing.button.setAttribute("aria-pressed", "true");
}

// -- the player

function start(sound) {
  const audio = byId("audio");
  if (playing !== sound) {
    if (playing) playing.button.style.removeProperty("--at");
    playing = sound;
    audio.src = sound.path + sound.suffix;
    byId("now").textContent = `${data.prompts[sound.prompt].text} – ${told(sound)}`;
  }
  audio.play();
}

function neighbour(step) {
  const place = listed.indexOf(playing) + step;
  if (place < 0 || place >= listed.length) return;
  if (place >= shown) {
    shown += PAGE;
    showSounds();
  }
  start(listed[place]);
  listed[place].button.scrollIntoView({ block: "nearest" });
}

function showPlayer() {
  const audio = byId("audio");
  const press = (pressed) => () => playing && playing.button.setAttribute("aria-pressed", String(pressed));
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll('.play[aria-pressed="true"]')) other.setAttribute("aria-pressed", "false");
    press(true)();
  });
  audio.addEventListener("pause", press(false));
  audio.addEventListener("timeupdate", () => {
    if (playing && audio.duration) playing.button.style.setProperty("--at", audio.currentTime / audio.duration);
  });
  audio.addEventListener("ended", () => byId("onward").checked && neighbour(1));
  audio.addEventListener("error", () => {
    byId("now").textContent = `${playing.path}${playing.suffix} cannot be played; is it still beside this page?`;
  });
  byId("previous").addEventListener("click", () => neighbour(-1));
  byId("next").addEventListener("click", () => neighbour(1));
}

// -- everything

function refresh() {
  shown = PAGE;
  showTable();
  listSounds();
  showSounds();
}

document.title = data.title;
document.querySelector("h1").textContent = data.title;
byId("facts").append(...Object.entries(data.facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
const leftOut = Object.entries(data.left_out);
byId("left-out").hidden = leftOut.length === 0;
document.querySelector("#left-out summary").textContent = `Left out: ${leftOut.length}`;
document.querySelector("#left-out ul").append(...leftOut.map(([name, reason]) => make("li", {}, `${name}: ${reason}`)));
byId("metric").append(...data.metrics.map((metric) => make("option", { value: metric.name }, metric.name)));
byId("metric").addEventListener("change", showPictures);
byId("order").addEventListener("change", refresh);
byId("more").addEventListener("click", () => {
  shown += PAGE;
  showSounds();
});
showFilters();
showColumnChoice();
showPlayer();
showPictures();
refresh();
