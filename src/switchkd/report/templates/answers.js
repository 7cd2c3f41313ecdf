"use strict";
// The list of all answers: filtered here, and drawn a piece at a time while it is scrolled.
(() => {
  const holder = document.getElementById("answers-data");
  if (!holder) return;
  const { kinds, models, rows } = JSON.parse(holder.textContent);
  const part = document.getElementById("answers");
  const box = part.querySelector(".answers");
  const body = box.querySelector("tbody");
  const count = part.querySelector("[data-count]");
  const search = part.querySelector("input");
  const [kind, ...marks] = part.querySelectorAll("select");
  const PIECE = 50;
  // What is searched in each row, made when it is first asked for.
  const texts = [];
  const textOf = (place) =>
    (texts[place] ??= [...rows[place].slice(0, 1), ...rows[place].slice(2, 4), ...rows[place][4].map((said) => said && said[0])]
      .join("\n").toLowerCase());

  function add(parent, tag, text, name) {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    parent.append(made);
    return made;
  }

  function draw([id, kindPlace, question, expected, said]) {
    const row = document.createElement("tr");
    const head = add(row, "th", "", "text");
    head.scope = "row";
    add(head, "span", question, "user");
    add(head, "small", `${kindPlace < 0 ? "no kind" : kinds[kindPlace]} · ${id}`, "user");
    add(row, "td", expected, "user");
    for (const answer of said) {
      const cell = add(row, "td", "");
      if (answer === null) add(cell, "span", "not asked", "caption");
      else add(cell, "span", answer[0], "user").parentElement.className = answer[1] ? "right" : "wrong";
      if (answer && answer[2]) add(cell, "small", " cut");
    }
    return row;
  }

  let found = [];
  let drawn = 0;
  function more() {
    const begin = drawn;
    drawn = Math.min(found.length, begin + PIECE);
    body.append(...found.slice(begin, drawn).map((place) => draw(rows[place])));
  }
  const near = () => box.scrollTop + box.clientHeight > box.scrollHeight - 600;

  function filter() {
    const words = search.value.toLowerCase().trim();
    const wanted = marks.map((select) => select.value);
    found = [];
    for (let place = 0; place < rows.length; place++) {
      const row = rows[place];
      if (kind.value !== "" && row[1] !== Number(kind.value)) continue;
      if (!wanted.every((mark, model) => mark === "" || (row[4][model] !== null && row[4][model][1] === Number(mark)))) continue;
      if (words && !textOf(place).includes(words)) continue;
      found.push(place);
    }
    drawn = 0;
    body.replaceChildren();
    box.scrollTop = 0;
    more();
    count.textContent = `${found.length} of ${rows.length} questions`;
  }

  box.addEventListener("scroll", () => { if (drawn < found.length && near()) more(); }, { passive: true });
  search.addEventListener("input", filter);
  for (const select of [kind, ...marks]) select.addEventListener("change", filter);
  addEventListener("beforeprint", () => { while (drawn < Math.min(found.length, 1000)) more(); });
  filter();
})();
