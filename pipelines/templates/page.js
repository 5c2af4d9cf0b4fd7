"use strict";
// The search page: asks the server it came from, and nobody else.
const $ = (id) => document.getElementById(id);
const PALETTE = ["#3b6fb6", "#e8853b", "#3d9a6a", "#c8474c", "#8a63b5", "#17a2b0", "#c9a227", "#d5659a", "#7d6b5d", "#7a9a2e", "#6f86f0", "#b8572a", "#2c8a7d", "#a8417c", "#98923a", "#5a6b85"];
const MAX_EDGE = 4096;
let token = "";
try { token = sessionStorage.getItem("orbit-token") || ""; } catch { /* no storage: asked again */ }
let asked = null;   // {image: Blob} or {item} or {cluster}: what the hits shown answer
let running = null; // the request under way, aborted by the next
let facts = null;
let objectUrl = null;

const make = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const number = (value) => value.toLocaleString("en");
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) { $("gate").hidden = false; $("token").focus(); }
  throw new Error(await explain(answer));
}

async function explain(answer) {
  let said = "";
  try { said = (await answer.json()).error || ""; } catch { /* not ours: a proxy's page */ }
  const first = {
    401: token ? "That token is not the right one." : "A token is needed to search here.",
    413: "That image is too large.",
    415: "That is not an image this server can read.",
    429: "The server is busy. Try again in a moment.",
  }[answer.status];
  if (answer.status === 401 || answer.status === 429) return first;
  return [first, said ? said[0].toUpperCase() + said.slice(1) + "." : `The server answered ${answer.status}.`].filter(Boolean).join(" ");
}

function complain(error) {
  if (error.name === "AbortError") return;
  $("wrong").textContent = error.message;
  $("alert").hidden = false;
  $("status").textContent = "";
}

// Pictures --------------------------------------------------------------------------------------
const pictures = new Map(); // image_id -> promise of a URL; with a token an <img> cannot ask itself
function picture(id) {
  if (!token) return Promise.resolve(`items/${id}/thumbnail`);
  if (!pictures.has(id)) {
    pictures.set(id, call(`items/${id}/thumbnail`).then((answer) => answer.blob()).then((blob) => URL.createObjectURL(blob)));
    if (pictures.size > 2000) {
      const [oldest, url] = pictures.entries().next().value;
      pictures.delete(oldest);
      url.then(URL.revokeObjectURL, () => {});
    }
  }
  return pictures.get(id);
}

// The ground a picture lies on, from its border: what a turn uncovers looks as if it went on.
const sheet = new OffscreenCanvas(12, 12).getContext("2d", { willReadFrequently: true });
function border(image) {
  sheet.clearRect(0, 0, 12, 12);
  sheet.drawImage(image, 0, 0, 12, 12);
  const pixels = sheet.getImageData(0, 0, 12, 12).data;
  const edge = [...Array(144).keys()].filter((at) => at < 12 || at >= 132 || at % 12 === 0 || at % 12 === 11);
  const middle = (channel) => edge.map((at) => pixels[4 * at + channel]).sort((a, b) => a - b)[edge.length >> 1];
  return `rgb(${middle(0)} ${middle(1)} ${middle(2)})`;
}

function thumb(id, name) {
  const frame = make("span", "thumb");
  const image = make("img");
  image.alt = name;
  image.decoding = "async";
  const blank = () => { image.remove(); if (!frame.firstChild) frame.append(make("span", "blank")); };
  image.onload = () => { frame.style.background = border(image); image.classList.add("there"); };
  image.onerror = blank;
  picture(id).then((url) => { image.src = url; }, blank);
  frame.append(image);
  return frame;
}

// The turn of a hit: mirror first, then counter-clockwise; CSS reads from the right and turns clockwise.
function transform(pose) {
  return pose ? `rotate(${-pose.angle_degrees}deg)${pose.mirror ? " scaleX(-1)" : ""}` : "none";
}
function words(pose) {
  if (!pose) return "";
  const turn = pose.angle_degrees ? `turned ${Math.round(pose.angle_degrees * 10) / 10}°` : "";
  return pose.mirror ? (turn ? `mirrored, ${turn}` : "mirrored") : turn;
}
function mark(pose) {
  if (!pose) return "";
  return `${pose.mirror ? "⇋" : ""}${pose.angle_degrees ? ` ↺${Math.round(pose.angle_degrees)}°` : ""}`.trim();
}

// Hits ------------------------------------------------------------------------------------------
function card(hit, rank) {
  const name = hit.label || hit.key;
  const made = make("button", "hit");
  made.type = "button";
  made.dataset.key = hit.key;
  made.style.setProperty("--pose", transform(hit.pose));
  made.setAttribute("aria-label", [`${rank + 1}: ${name}`, `score ${hit.score.toFixed(3)}`, words(hit.pose), `key ${hit.key}`, "search from it"].filter(Boolean).join(", "));
  made.title = `${hit.key} · ${hit.source}${hit.label ? ` · ${hit.label}` : ""}${hit.pose && words(hit.pose) ? ` · ${words(hit.pose)}` : ""}`;
  const line = make("span", "line");
  line.append(make("b", "", name), make("span", "", hit.score.toFixed(3)));
  const score = make("span", "score");
  score.style.display = "block";
  const filled = make("i");
  filled.style.width = `${100 * Math.max(0, Math.min(1, hit.score))}%`;
  score.append(filled);
  const under = make("span", "under");
  under.append(make("span", "key", hit.label ? hit.key : hit.source));
  if (mark(hit.pose)) under.append(make("span", "turn", mark(hit.pose)));
  made.append(thumb(hit.image_id, name), line, score, under);
  made.addEventListener("click", () => ask({ item: hit }, true));
  return made;
}

function show(hits, note) {
  $("hits").replaceChildren(...hits.map(card));
  $("status").textContent = hits.length ? note : "Nothing found: no image passes these filters.";
}

async function ask(what, remember) {
  asked = what;
  if (running) running.abort();
  running = new AbortController();
  const mine = running;
  $("alert").hidden = true;
  $("status").textContent = "Searching…";
  document.body.classList.add("busy");
  if (remember) history.pushState(null, "", what.item ? `#item=${what.item.image_id}` : what.cluster !== undefined ? `#cluster=${what.cluster}` : "#search");
  portray(what);
  const started = performance.now();
  try {
    const hits = what.cluster === undefined ? await search(what, mine.signal) : await members(what.cluster, mine.signal);
    if (mine !== running) return;
    const took = Math.max(1, Math.round(performance.now() - started));
    show(hits, what.cluster === undefined ? `${plural(hits.length, "neighbour")}, best first, in ${number(took)} ms` : `${plural(hits.length, "image")} of cluster ${what.cluster}, nearest to its centre first`);
    if (remember) $("well").scrollIntoView({ block: "center" });
  } catch (error) {
    if (mine === running) { if (what.image) $("hits").replaceChildren(); complain(error); }
  } finally {
    if (mine === running) document.body.classList.remove("busy");
  }
}

async function search(what, signal) {
  const asking = new URLSearchParams({ k: $("k").value, align: "true" });
  if ($("label").value) asking.set("label", $("label").value);
  if ($("cluster").value) asking.set("cluster", $("cluster").value);
  const [type, body] = what.image ? [what.image.type || "image/unknown", what.image] : ["application/json", JSON.stringify({ image_id: what.item.image_id })];
  const answer = await call(`search?${asking}`, { method: "POST", headers: { "Content-Type": type }, body, signal });
  return (await answer.json()).neighbours;
}

async function members(cluster, signal) {
  return (await (await call(`clusters/${cluster}?k=${$("k").value}`, { signal })).json()).members;
}

// Fingers drop nothing: they choose a picture, or take one.
const touch = matchMedia("(hover: none) and (pointer: coarse)").matches;
function invite() {
  $("invitation").textContent = touch ? "Show an image" : "Drop an image here";
  if (touch) { $("how").textContent = ""; $("choose").textContent = "choose or take a picture"; }
}

function portray(what) {
  const query = $("query");
  if (objectUrl) { URL.revokeObjectURL(objectUrl); objectUrl = null; }
  $("well").classList.toggle("asked", Boolean(what));
  $("clear").hidden = !what;
  $("picture").hidden = !what;
  for (const one of document.querySelectorAll(".kind")) one.setAttribute("aria-pressed", String(Boolean(what) && Number(one.dataset.cluster) === what.cluster));
  $("how").textContent = touch ? "" : what ? "Drop or paste another, or " : "or paste one, or ";
  if (!what) { invite(); query.removeAttribute("src"); return; }
  query.onerror = () => { $("picture").hidden = true; };
  if (what.image) {
    objectUrl = URL.createObjectURL(what.image);
    query.src = objectUrl;
    $("invitation").textContent = what.image.name || "Pasted image";
    return;
  }
  const item = what.item || (facts.clusters.find((one) => one.cluster === what.cluster) || {}).medoid;
  $("invitation").textContent = what.item ? (item.label ? `${item.label}, ${item.key}` : item.key || "Image of the collection") : `Cluster ${what.cluster}`;
  if (item) picture(item.image_id).then((url) => { if (asked === what) query.src = url; }, () => { $("picture").hidden = true; });
}

async function take(file) {
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) {
    complain(new Error(`“${file.name || "That"}” is not an image: its type is ${file.type}.`));
    return;
  }
  await ask({ image: await smaller(file) }, true);
}

// A photo over the server's limit is shrunk here, when the browser can read it.
async function smaller(file) {
  const limit = facts ? facts.limits.body_bytes : Infinity;
  if (file.size <= limit) return file;
  try {
    const drawn = await createImageBitmap(file);
    const scale = Math.min(1, MAX_EDGE / Math.max(drawn.width, drawn.height));
    const canvas = new OffscreenCanvas(Math.round(drawn.width * scale), Math.round(drawn.height * scale));
    canvas.getContext("2d").drawImage(drawn, 0, 0, canvas.width, canvas.height);
    const blob = await canvas.convertToBlob({ type: "image/png" });
    return new File([blob], file.name, { type: "image/png" });
  } catch { return file; }
}

function reset() {
  asked = null;
  if (running) running.abort();
  document.body.classList.remove("busy");
  portray(null);
  $("hits").replaceChildren();
  $("status").textContent = "";
  $("alert").hidden = true;
}

// Clusters and facts ----------------------------------------------------------------------------
function group(found, colours) {
  const made = make("button", "kind");
  made.type = "button";
  made.dataset.cluster = found.cluster;
  made.setAttribute("aria-pressed", "false");
  const text = make("span");
  text.append(make("b", "", `Cluster ${found.cluster}`), make("small", "", plural(found.size, "image")));
  const named = found.labels.slice(0, 3).map((one) => one.label).join(", ");
  if (named) text.append(make("small", "", named));
  if (found.labels.length) {
    const mix = make("span", "mix");
    for (const one of found.labels.slice(0, 8)) {
      const part = make("i");
      part.style.flexGrow = one.count;
      part.style.background = PALETTE[(colours.get(one.label) ?? 15) % PALETTE.length];
      part.title = `${one.label}: ${number(one.count)}`;
      mix.append(part);
    }
    const rest = found.size - found.labels.slice(0, 8).reduce((sum, one) => sum + one.count, 0);
    if (rest > 0) { const part = make("i", "rest"); part.style.flexGrow = rest; mix.append(part); }
    text.append(mix);
  }
  made.append(thumb(found.medoid.image_id, `the centre of cluster ${found.cluster}`), text);
  made.addEventListener("click", () => ask({ cluster: found.cluster }, true));
  return made;
}

function options(select, values) {
  select.replaceChildren(new Option("all", ""), ...values.map(([value, text]) => new Option(text, value)));
  select.parentElement.hidden = !values.length;
}

async function open() {
  const [info, groups] = await Promise.all([call("info"), call("clusters")].map(async (answer) => (await answer).json()));
  facts = { ...info, clusters: groups.clusters };
  $("gate").hidden = true;
  const most = info.limits.k;
  for (const one of [...$("k").options]) if (Number(one.value) > most) one.remove();
  if (!$("k").options.length) $("k").append(new Option(most, most));
  document.title = `${info.name || "Search"} · Orbit`;
  $("name").textContent = info.name || "Search";
  $("about").textContent = `${plural(info.num_images, "image")}${info.num_clusters ? ` in ${plural(info.num_clusters, "cluster")}` : ""}. Show one, and its neighbours are found whatever way up they lie.`;
  options($("label"), info.labels.map((one) => [one.label, `${one.label} (${number(one.count)})`]));
  options($("cluster"), facts.clusters.map((one) => [one.cluster, `${one.cluster} (${number(one.size)})`]));
  const colours = new Map(info.labels.map((one, place) => [one.label, place]));
  $("groups").replaceChildren(...facts.clusters.map((one) => group(one, colours)));
  $("none").hidden = Boolean(facts.clusters.length);
  $("kinds").hidden = !facts.clusters.length;
  $("report").hidden = !info.report;
  $("foot").textContent = `Publication ${info.publication.id} of ${info.publication.created.slice(0, 10)}, model ${info.model.name || info.model.model_id}, group ${info.model.group.toUpperCase()}.`;
  await restore();
}

// What the address says: the back button works, and a link can be kept.
function place() {
  const found = /^#(item|cluster)=(\d+)$/.exec(location.hash);
  return found ? { [found[1]]: found[2] } : null;
}
async function restore() {
  const said = place();
  try {
    if (said && said.item) await ask({ item: await (await call(`items/${said.item}`)).json() }, false);
    else if (said && said.cluster) await ask({ cluster: Number(said.cluster) }, false);
  } catch (error) { complain(error); }
}

// With a token a plain link cannot ask: a ticket that is good for a minute goes in its place.
async function follow(event) {
  if (!token) return;
  event.preventDefault();
  try {
    location.assign((await (await call("report/ticket", { method: "POST" })).json()).address);
  } catch (error) { complain(error); }
}

// Wiring ----------------------------------------------------------------------------------------
function turn() {
  const on = $("turn").getAttribute("aria-checked") !== "true";
  $("turn").setAttribute("aria-checked", String(on));
  document.body.classList.toggle("turning", on);
}
function walk(event) {
  const all = [...$("hits").children];
  const at = all.indexOf(document.activeElement);
  if (at < 0) return;
  const across = Math.max(1, all.filter((one) => one.offsetTop === all[0].offsetTop).length);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + across, ArrowUp: at - across, Home: 0, End: all.length - 1 }[event.key];
  if (next === undefined || !all[next]) return;
  event.preventDefault();
  all[next].focus();
}
const isTyping = (target) => target instanceof Element && target.matches("input:not([type=file]), select, textarea");

$("well").addEventListener("click", (event) => {
  if (event.target.id === "choose" || !asked) $("file").click();
});
$("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
$("turn").addEventListener("click", turn);
$("report").addEventListener("click", follow);
$("clear").addEventListener("click", () => { history.pushState(null, "", "#search"); reset(); });
$("dismiss").addEventListener("click", () => { $("alert").hidden = true; });
for (const id of ["label", "cluster", "k"]) {
  $(id).addEventListener("change", () => {
    if (asked && asked.cluster !== undefined && id !== "k") {
      const middle = facts.clusters.find((one) => one.cluster === asked.cluster).medoid;
      ask({ item: middle }, true);
    } else if (asked) ask(asked, false);
  });
}
$("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  try { sessionStorage.setItem("orbit-token", token); } catch { /* kept for this page alone */ }
  $("alert").hidden = true;
  invite();
open().catch(complain);
});
for (const name of ["dragenter", "dragover"]) addEventListener(name, (event) => { event.preventDefault(); $("well").classList.add("over"); });
for (const name of ["dragleave", "drop"]) addEventListener(name, (event) => { event.preventDefault(); if (name === "drop" || !event.relatedTarget) $("well").classList.remove("over"); });
addEventListener("drop", (event) => {
  const file = event.dataTransfer.files[0];
  if (file) take(file); else complain(new Error("That was not a file. Save the image first, then drop it here."));
});
addEventListener("paste", (event) => {
  if (isTyping(event.target)) return;
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) take(file); else complain(new Error("The clipboard holds no image."));
});
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if (event.key === "/") { event.preventDefault(); $("file").click(); }
  else if (event.key === "t" || event.key === "T") turn();
  else if (event.key === "Escape" && asked) $("clear").click();
  else walk(event);
});
addEventListener("popstate", () => { if (place()) restore(); else reset(); });

invite();
open().catch(complain);
