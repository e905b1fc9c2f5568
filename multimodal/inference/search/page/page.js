// Everything shown comes from the server as data and is set as text: none of it becomes markup.
const $ = (id) => document.getElementById(id);
const terms = []; // {text | file | row, label, weight, picture}
let asked = 0;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

function add(term) {
  if (terms.length >= 8) return fail("A query has at most 8 terms.");
  terms.push({ weight: 1, ...term });
  changed();
}

function changed() {
  $("terms").replaceChildren(...terms.map((term) => {
    const minus = term.weight < 0;
    const turn = make("button", { type: "button", className: "sign", textContent: minus ? "−" : "+",
      title: minus ? "taken away; press to add" : "added; press to take away",
      onclick: () => { term.weight = -term.weight; changed(); } });
    turn.setAttribute("aria-label", `${minus ? "add" : "take away"} ${term.label}`);
    const drop = make("button", { type: "button", textContent: "×",
      onclick: () => { terms.splice(terms.indexOf(term), 1); changed(); } });
    drop.setAttribute("aria-label", `remove ${term.label}`);
    const picture = term.picture ? [make("img", { src: term.picture, alt: "" })] : [];
    return make("li", { className: minus ? "term minus" : "term" }, turn, ...picture,
      make("span", { textContent: term.label, title: term.label }), drop);
  }));
  search();
}

async function search() {
  const number = ++asked;
  fail("");
  if (!terms.length) return $("results").replaceChildren();
  const form = new FormData();
  const listed = terms.map((term, place) => {
    if (term.file) form.append(`file${place}`, term.file, term.file.name);
    return term.file ? { file: `file${place}`, weight: term.weight }
      : term.text !== undefined ? { text: term.text, weight: term.weight }
      : { row: term.row, weight: term.weight };
  });
  form.append("terms", JSON.stringify(listed));
  form.append("k", "8");
  $("results").classList.add("busy");
  let answer;
  try {
    const response = await fetch("/search", { method: "POST", body: form });
    answer = await response.json();
  } catch {
    answer = { error: "The server does not answer, or has cut the upload off as too large." };
  }
  if (number !== asked) return;
  $("results").classList.remove("busy");
  if (answer.error) {
    $("results").replaceChildren();
    return fail(answer.error);
  }
  $("results").replaceChildren(...Object.entries(answer.results).map(([modality, found]) =>
    make("section", { id: `of-${modality}` },
      make("h2", {}, modality, " ", make("small", { textContent: "nearest first" })),
      make("div", { className: modality === "audio" || modality === "text" ? "grid wide" : "grid" },
        ...found.map((one) => card(one))))));
}

function card(one) {
  const source = `/media/${one.row}`;
  const parts = [];
  if (one.type.startsWith("image/")) parts.push(make("img", { src: source, alt: one.name, loading: "lazy" }));
  if (one.type.startsWith("audio/")) parts.push(make("audio", { src: source, controls: true, preload: "metadata" }));
  parts.push(make("p", { textContent: one.text ?? one.name, title: one.key }));
  const more = make("button", { type: "button", textContent: "+", title: "add to the query",
    onclick: () => add({ row: one.row, label: one.name, picture: one.type.startsWith("image/") ? source : null }) });
  more.setAttribute("aria-label", `add ${one.name} to the query`);
  parts.push(make("footer", {}, make("span", { textContent: one.score.toFixed(3) }), more));
  return make("article", { className: "card" }, ...parts);
}

function addFiles(files) {
  for (const file of files)
    add({ file, label: file.name, picture: file.type.startsWith("image/") ? URL.createObjectURL(file) : null });
}

$("words").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  add({ text, label: text, weight: Number(event.submitter?.value ?? 1) });
};
$("file").onchange = () => { addFiles($("file").files); $("file").value = ""; };
for (const type of ["dragover", "dragleave", "drop"])
  document.addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", type === "dragover");
    if (type === "drop") addFiles(event.dataTransfer.files);
  });
fetch("/about").then((response) => response.json()).then((about) => {
  document.title = about.title;
  document.querySelector("h1").textContent = about.title;
  const rows = Object.entries(about.rows).map(([name, count]) => `${count.toLocaleString()} ${name}`);
  $("about").textContent = `In the index: ${rows.join(", ")}. Takes ${about.takes.join(", ")}.`;
  $("file").accept = about.types.map((type) => `.${type}`).join(",");
});
