// data: {title, facts, columns, kinds, sounds}; see diffaudio/evaluation/kinds.py
let wanted = "";

function buttons(kind, column) {
  return data.sounds
    .filter((sound) => sound.kind === kind.name && sound.column === column.name)
    .map((sound) => {
      const play = make("button", { type: "button", className: "play", title: sound.recognised });
      if (sound.right !== null) play.classList.add(sound.right ? "right" : "wrong");
      const verdict = sound.right === null ? "" : sound.right ? ", recognised" : ", not recognised";
      play.setAttribute("aria-label", `Play ${kind.name}, ${column.title}${verdict}`);
      play.setAttribute("aria-pressed", String(playing === sound && !byId("audio").paused));
      play.addEventListener("click", () => (playing === sound && !byId("audio").paused ? byId("audio").pause() : start(sound)));
      sound.button = play;
      return play;
    });
}

function showKinds() {
  const table = byId("kinds");
  const heads = ["kind", ...data.columns.map((column) => column.title)];
  table.tHead.replaceChildren(make("tr", {}, ...heads.map((text) => make("th", { scope: "col", className: "plain text" }, text))));
  const kinds = data.kinds.filter((kind) => kind.name.toLowerCase().includes(wanted));
  const lines = kinds.map((kind) => {
    const cells = data.columns.map((column) => {
      const count = kind.counts[column.name];
      return make("td", { className: "text" }, make("small", {}, count ? `${count.count} of ${count.n}` : "–"), ...buttons(kind, column));
    });
    return make("tr", {}, make("th", { scope: "row" }, kind.name), ...cells);
  });
  table.tBodies[0].replaceChildren(...lines);
  const names = new Set(kinds.map((kind) => kind.name));
  const order = Object.fromEntries(data.columns.map((column, place) => [column.name, place]));
  listed = data.sounds
    .filter((sound) => names.has(sound.kind))
    .sort((a, b) => (a.kind === b.kind ? order[a.column] - order[b.column] : a.kind < b.kind ? -1 : 1));
  shown = listed.length;
  byId("count").textContent = `${kinds.length} kinds`;
}

showTitle();
const form = byId("filters");
form.addEventListener("submit", (event) => event.preventDefault());
form.append(...searchBox("Find", data.kinds.map((kind) => kind.name), (text) => {
  wanted = text;
  showKinds();
}));
showPlayer();
showKinds();
