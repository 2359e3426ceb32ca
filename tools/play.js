// The page "Try it": two sliders, a game and a table over pre-rendered sheets of images. FACTS is written above by tools/site.py.
"use strict";

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// One image of a sheet of `columns` x `rows`, as a box that shows its part.
function tile(sheet, columns, rows) {
  const box = element("div", { className: "tile" });
  box.setAttribute("role", "img");
  box.style.backgroundImage = `url("${sheet}")`;
  box.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  box.turn = (column, row, name) => {
    const x = columns > 1 ? (100 * column) / (columns - 1) : 0;
    box.style.backgroundPosition = `${x}% ${(100 * row) / (rows - 1)}%`;
    box.setAttribute("aria-label", name);
  };
  return box;
}

function slider(name, count, changed) {
  const input = element("input", { type: "range", min: 0, max: count - 1, value: 0 });
  input.addEventListener("input", changed);
  const value = element("output");
  return { input, value, label: element("label", {}, element("span", {}, name), input, value) };
}

function sheetOf(place) {
  return place.querySelector("img").getAttribute("src");
}

function loop(place) {
  const image = place.querySelector("img");
  const source = place.querySelector("source");
  const moving = image.getAttribute("src");
  const still = source.getAttribute("srcset");
  let runs = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  source.remove();
  const button = element("button", { type: "button" });
  function show() {
    image.src = runs ? moving : still;
    button.textContent = runs ? "Stop" : "Play";
  }
  button.addEventListener("click", () => { runs = !runs; show(); });
  show();
  place.after(button);
}

function walls(place, facts) {
  const sheet = sheetOf(place);
  const columns = facts.mm.length;
  const [map, echo] = [tile(sheet, columns, 1 + facts.noises), tile(sheet, columns, 1 + facts.noises)];
  const thickness = slider("wall", columns, draw);
  const noise = slider("noise", facts.noises, draw);
  function draw() {
    const [k, n] = [Number(thickness.input.value), Number(noise.input.value)];
    const wall = `${facts.mm[k].toFixed(1)} mm`;
    thickness.value.textContent = wall;
    noise.value.textContent = `no. ${n + 1}`;
    thickness.input.setAttribute("aria-valuetext", wall);
    map.turn(k, 0, `label map, wall ${wall}`);
    echo.turn(k, n + 1, `echo, wall ${wall}, noise ${n + 1}`);
  }
  draw();
  place.replaceChildren(element("div", { className: "tiles" }, map, echo), thickness.label, noise.label);
}

// How often guessing gets `right` or more of `n`: the upper tail of the binomial distribution.
function byChance(right, n) {
  let [term, sum] = [1, 0];
  for (let k = 0; k <= n; k += 1) {
    if (k >= right) sum += term;
    term *= (n - k) / (k + 1);
  }
  return sum / 2 ** n;
}

function pairs(place, facts) {
  const sheet = sheetOf(place);
  const n = facts.views.length;
  const tiles = [0, 1].map(() => tile(sheet, 2, n));
  const buttons = tiles.map((box) => element("button", { type: "button", className: "choice" }, box, element("span")));
  const said = element("p");
  said.setAttribute("role", "status");
  const next = element("button", { type: "button" });
  let [k, right, real] = [0, 0, 0];
  function ask() {
    real = Math.random() < 0.5 ? 0 : 1; // which side the real one is on
    tiles.forEach((box, side) => box.turn(side === real ? 0 : 1, k, `${side ? "right" : "left"} echo`));
    buttons.forEach((button, side) => {
      button.disabled = false;
      button.lastChild.textContent = `${side ? "right" : "left"} is real`;
    });
    said.textContent = `Pair ${k + 1} of ${n}, ${facts.views[k]}. Which one is real?`;
    next.hidden = true;
  }
  function answer(side) {
    right += side === real;
    k += 1;
    buttons.forEach((button, other) => {
      button.disabled = true;
      button.lastChild.textContent = other === real ? "real" : "painted";
    });
    const score = `${side === real ? "Yes" : "No"}: ${right} of ${k} right.`;
    const chance = Math.round(100 * byChance(right, n));
    said.textContent = k < n ? score : `${score} Guessing gets ${right} or more in ${chance} % of games.`;
    next.textContent = k < n ? "Next pair" : "Play again";
    next.hidden = false;
    next.focus();
  }
  buttons.forEach((button, side) => button.addEventListener("click", () => answer(side)));
  next.addEventListener("click", () => {
    if (k === n) [k, right] = [0, 0];
    ask();
    buttons[0].focus();
  });
  ask();
  place.replaceChildren(said, element("div", { className: "tiles" }, ...buttons), next);
}

function cells(place, facts) {
  const sheet = sheetOf(place);
  const [rows, columns] = [facts.rows.length * facts.structures.length, facts.frames[0][0].length];
  const said = element("p");
  said.setAttribute("role", "status");
  const tiles = element("div", { className: "tiles" });
  const buttons = [];
  function open(row, structure, pressed) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === pressed));
    said.textContent = `${facts.rows[row]}, ${facts.structures[structure]}: its ${columns} worst frames, worst first.`;
    tiles.replaceChildren(...facts.frames[row][structure].map((name, k) => {
      const box = tile(sheet, columns, rows);
      box.turn(k, row * facts.structures.length + structure, name);
      return element("figure", {}, box, element("figcaption", { textContent: name }));
    }));
  }
  const head = element("tr", {}, element("th", { textContent: "trained on" }));
  for (const name of facts.structures) head.append(element("th", { textContent: name }));
  const body = facts.rows.map((name, row) => {
    const line = element("tr", {}, element("th", { textContent: name }));
    facts.structures.forEach((structure, k) => {
      const button = element("button", { type: "button", textContent: facts.dice[row][k].toFixed(1) });
      button.setAttribute("aria-label", `${name}, ${structure}: ${button.textContent} %`);
      button.addEventListener("click", () => open(row, k, button));
      buttons.push(button);
      line.append(element("td", {}, button));
    });
    return line;
  });
  place.replaceChildren(element("table", {}, head, ...body), said, tiles);
  open(facts.rows.length - 1, 0, buttons[(facts.rows.length - 1) * facts.structures.length]);
}

const parts = { loop, walls, pairs, cells };
for (const [name, part] of Object.entries(parts)) part(document.getElementById(name), FACTS[name]);
