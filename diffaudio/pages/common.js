"use strict";
// What all pages share: elements, numbers, filters, sorted tables, the player. Of `data` it wants
// {title, facts, sounds: [{address, title, picture}]}; the page itself defines `card(sound)`.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 60;
let shown = PAGE;
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

function showTitle() {
  document.title = data.title;
  document.querySelector("h1").textContent = data.title;
  const facts = Object.entries(data.facts);
  byId("facts").append(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

// -- filters: an axis is {name, title, values}; chosen[axis.name] is the set of its values that pass

function chips(axis, chosen, changed) {
  const chip = (value) => {
    const box = make("input", { type: "checkbox", checked: true, name: axis.name, value: String(value) });
    box.addEventListener("change", () => {
      if (box.checked) chosen[axis.name].add(value);
      else chosen[axis.name].delete(value);
      changed();
    });
    return make("label", { className: "chip" }, box, make("span", {}, String(value ?? "none")));
  };
  return make("fieldset", {}, make("legend", {}, axis.title), ...axis.values.map(chip));
}

function choose(form, axes, chosen, passes) {
  for (const box of form.querySelectorAll(".chip input")) {
    const axis = axes.find((each) => each.name === box.name);
    const value = axis.values.find((each) => String(each) === box.value);
    box.checked = passes(axis, value);
    if (box.checked) chosen[axis.name].add(value);
    else chosen[axis.name].delete(value);
  }
}

function searchBox(label, texts, changed) {
  const search = make("input", { type: "search", id: "wanted", placeholder: "any" });
  search.setAttribute("list", "texts");
  search.addEventListener("input", () => changed(search.value.trim().toLowerCase()));
  const options = make("datalist", { id: "texts" }, ...texts.map((text) => make("option", { value: text })));
  return [make("label", {}, `${label} `, search), options];
}

// -- tables: a column is {name, title, direction, exact, text, help}, `sorted` is {column, ascending}

function heading(table, column, sorted, changed) {
  const button = make("button", { type: "button", title: column.help ?? "" }, column.title);
  button.addEventListener("click", () => {
    sorted.ascending = sorted.column === column.name ? !sorted.ascending : (column.direction ?? 0) <= 0;
    sorted.column = column.name;
    changed();
    table.querySelector(`th[data-column="${CSS.escape(column.name)}"] button`).focus();
  });
  const cell = make("th", { scope: "col", className: column.text ? "text" : "" }, button);
  cell.dataset.column = column.name;
  const order = sorted.ascending ? "ascending" : "descending";
  cell.setAttribute("aria-sort", sorted.column === column.name ? order : "none");
  return cell;
}

function cell(row, column) {
  const value = row[column.name];
  const measured = typeof value === "number" && !column.exact;
  const text = value === null || value === undefined ? "" : measured ? number(value) : String(value);
  return make("td", { className: column.text ? "text" : "" }, text);
}

// the interval and the number of sounds beside a number; fewer than FEW get a word
const FEW = 30;

function numberCell(element, { low, high, n }) {
  if (typeof low === "number" && typeof high === "number") element.append(make("small", {}, ` ${number(low)} to ${number(high)}`));
  if (typeof n === "number") {
    element.append(make("small", {}, n < FEW ? ` n ${n}, few` : ` n ${n}`));
    element.classList.toggle("few", n < FEW);
  }
  return element;
}

// a table that is wider than its place says so
function watchTables() {
  for (const box of document.querySelectorAll(".scroll")) {
    const hint = make("p", { className: "scroll-hint", hidden: true }, "Wider than the window: scroll the table sideways for more. →");
    box.before(hint);
    const look = () => {
      hint.hidden = box.scrollWidth <= box.clientWidth + 1;
      box.classList.toggle("wider", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    };
    box.addEventListener("scroll", look);
    const observer = new ResizeObserver(look);
    observer.observe(box);
    for (const table of box.children) observer.observe(table);
  }
}
watchTables();

function inOrder(rows, sorted) {
  if (!sorted.column) return rows;
  return [...rows].sort((a, b) => {
    const [x, y] = [a[sorted.column], b[sorted.column]];
    if (x === y) return 0;
    if (x === null || x === undefined) return 1; // what is missing comes last, whichever way
    if (y === null || y === undefined) return -1;
    const before = typeof x === "number" ? x < y : String(x) < String(y);
    return before === sorted.ascending ? -1 : 1;
  });
}

// -- cards with players

function playButton(sound, label) {
  const picture = make("img", { src: sound.picture, alt: "", loading: "lazy", width: 250, height: 84 });
  const play = make("button", { type: "button", className: "play" }, picture);
  play.setAttribute("aria-label", `Play ${label}`);
  play.setAttribute("aria-pressed", "false");
  play.addEventListener("click", () => (playing === sound && !byId("audio").paused ? byId("audio").pause() : start(sound)));
  sound.button = play;
  return play;
}

function showSounds() {
  const some = listed.slice(0, shown);
  byId("sounds").replaceChildren(...some.map(card));
  byId("more").hidden = some.length === listed.length;
  byId("count").textContent = `${listed.length} sounds`;
  if (playing && !byId("audio").paused) playing.button.setAttribute("aria-pressed", "true");
}

function start(sound) {
  const audio = byId("audio");
  if (playing !== sound) {
    if (playing) playing.button.style.removeProperty("--at");
    playing = sound;
    audio.src = sound.address;
    byId("now").textContent = sound.title;
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
    byId("now").textContent = `${playing.address} cannot be played; is it still beside this page?`;
  });
  byId("previous").addEventListener("click", () => neighbour(-1));
  byId("next").addEventListener("click", () => neighbour(1));
  byId("more").addEventListener("click", () => {
    shown += PAGE;
    showSounds();
  });
}
