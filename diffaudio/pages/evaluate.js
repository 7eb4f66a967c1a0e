// data: {title, facts, columns, metrics, notes, left_out, sounds}; see diffaudio/evaluation/page.py
let wanted = "";
const sorted = { column: null, ascending: true };

// -- metrics: a line each, a column for each row of the report

function showMetrics() {
  const table = byId("metrics");
  const heads = data.columns.map((column) => make("th", { scope: "col", className: "plain" }, column));
  table.tHead.replaceChildren(make("tr", {}, make("th", { scope: "col", className: "plain text" }, "metric"), ...heads));
  const better = { 1: "higher is better", "-1": "lower is better", 0: "" };
  const lines = data.metrics.map((metric) => {
    const name = make("th", { scope: "row" }, metric.name, make("small", {}, better[metric.direction]));
    const cells = metric.cells.map((each) => (each === null ? make("td", {}, "–") : numberCell(make("td", {}, number(each.value)), each)));
    return make("tr", {}, name, ...cells);
  });
  table.tBodies[0].replaceChildren(...lines);
}

// -- sounds

const SOUND_COLUMNS = [
  { name: "name", title: "sound", text: true },
  { name: "wanted", title: "should be", text: true },
  { name: "recognised", title: "recognised as", text: true },
  { name: "loudness", title: "LUFS" },
  { name: "faults", title: "faults", text: true },
];

function showSounds() {
  const table = byId("sounds-table");
  const heads = SOUND_COLUMNS.map((column) => heading(table, column, sorted, refresh));
  table.tHead.replaceChildren(make("tr", {}, make("td", {}), ...heads));
  const some = listed.slice(0, shown);
  const lines = some.map((sound) => {
    const play = make("button", { type: "button", className: "play" });
    play.setAttribute("aria-label", `Play ${sound.name}`);
    play.setAttribute("aria-pressed", String(playing === sound && !byId("audio").paused));
    play.addEventListener("click", () => (playing === sound && !byId("audio").paused ? byId("audio").pause() : start(sound)));
    sound.button = play;
    const cells = SOUND_COLUMNS.map((column) => cell(sound, column));
    cells[2].classList.toggle("wrong", sound.right === false);
    return make("tr", {}, make("td", {}, play), ...cells);
  });
  table.tBodies[0].replaceChildren(...lines);
  byId("more").hidden = some.length === listed.length;
  byId("count").textContent = `${listed.length} sounds`;
}

function refresh() {
  shown = PAGE;
  const fits = (sound) => [sound.name, sound.wanted, sound.recognised].some((text) => (text ?? "").toLowerCase().includes(wanted));
  listed = inOrder(data.sounds.filter(fits), sorted);
  showSounds();
}

for (const sound of data.sounds) sound.title = sound.wanted ? `${sound.name} – ${sound.wanted}` : sound.name;
showTitle();
showMetrics();
byId("notes").append(...data.notes.map((note) => make("li", {}, note)));
const leftOut = Object.entries(data.left_out);
byId("left-out").hidden = leftOut.length === 0;
document.querySelector("#left-out summary").textContent = `Not measured: ${leftOut.length}`;
document.querySelector("#left-out ul").append(...leftOut.map(([name, reason]) => make("li", {}, `${name}: ${reason}`)));
const form = byId("filters");
form.addEventListener("submit", (event) => event.preventDefault());
form.append(...searchBox("Find", [...new Set(data.sounds.map((sound) => sound.wanted).filter(Boolean))], (text) => {
  wanted = text;
  refresh();
}));
showPlayer();
refresh();
