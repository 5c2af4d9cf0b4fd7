"use strict";
(() => {
  // Buttons that turn contact sheets to match, or back to how the images are stored.
  for (const button of document.querySelectorAll("[data-turn]")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      button.textContent = on ? "turned to match" : "as stored";
      document.querySelector(`[data-turned="${button.dataset.turn}"]`).classList.toggle("turned", on);
    });
  }

  const source = document.getElementById("map-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const atlas = document.querySelector(".atlas");
  const canvas = atlas.querySelector("canvas"), tip = atlas.querySelector(".tip");
  const legend = atlas.querySelector(".legend"), hint = atlas.querySelector(".hint");
  const context = canvas.getContext("2d");
  const GRID = 4095, MARGIN = 26, PICTURES = 320;
  const num = data.keys.length;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const state = { layout: "tsne" in data.layouts ? "tsne" : "pca", colour: "cluster", only: null, zoom: 1, x: 0.5, y: 0.5, near: -1 };
  let places = Float32Array.from(data.layouts[state.layout], (v) => v / GRID);
  let colours = [], packed = null, shown = null, waiting = false, width = 1, height = 1;

  // Thumbnails lie in a few sheets, opened when first looked at.
  const sheets = [];
  function sprite(i) {
    if (!data.sprites) return null;
    const { uris, side, columns, per_sheet: each } = data.sprites, number = Math.floor(i / each), j = i % each;
    if (!sheets[number]) {
      sheets[number] = new Image();
      sheets[number].onload = () => { draw(); if (state.near >= 0) show(state.near); };
      sheets[number].src = uris[number];
    }
    const sheet = sheets[number];
    return sheet.complete && sheet.naturalWidth ? { sheet, side, x: (j % columns) * side, y: Math.floor(j / columns) * side } : null;
  }

  const ramp = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  function onRamp(share) {
    const at = Math.max(0, Math.min(0.9999, share)) * (ramp.length - 1), i = Math.floor(at), f = at - i;
    return ramp[i].map((v, c) => Math.round(v + (ramp[i + 1][c] - v) * f));
  }
  const css = (colour) => `rgb(${colour.join(",")})`;
  const triple = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const palette = data.palette.map(triple), faint = triple(data.faint);
  const colourOf = (id) => (id < 0 ? faint : palette[id % palette.length]);
  const called = (id) => (id < 0 ? "in no cluster" : `cluster ${id}`);

  // Categories: for each point a number, with names and colours; small categories share one colour.
  function categories() {
    if (state.colour === "cluster") {
      const ids = [...new Set(data.cluster)].sort((a, b) => a - b);
      const place = new Map(ids.map((id, i) => [id, i]));
      return { codes: data.cluster.map((id) => place.get(id)), names: ids.map((id) => (id < 0 ? "In no cluster" : `Cluster ${id}`)), colours: ids.map(colourOf) };
    }
    const { names, codes } = data[state.colour];
    const shared = names.length > palette.length;
    return { codes, names, colours: names.map((_, i) => (shared && i >= palette.length - 1 ? faint : palette[i])) };
  }

  function recolour() {
    choose();
    packed = Int32Array.from(colours, ([red, green, blue]) => (blue << 16) | (green << 8) | red);
  }

  function choose() {
    state.only = null;
    legend.replaceChildren();
    if (state.colour === "outlier") {
      const sorted = [...data.outlier].sort((a, b) => a - b);
      const low = sorted[0], high = sorted[Math.floor(0.99 * (num - 1))] || 1;
      colours = data.outlier.map((v) => onRamp((v - low) / (high - low || 1)));
      shown = null;
      const scale = document.createElement("div"), bar = document.createElement("div");
      scale.className = "scale"; bar.className = "ramp";
      bar.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(onRamp).map(css)})`;
      scale.append(`in company ${low.toFixed(3)}`, bar, `${high.toFixed(3)} alone`);
      legend.append(scale);
      return;
    }
    shown = categories();
    colours = shown.codes.map((code) => (code < 0 ? faint : shown.colours[code]));
    const counts = new Map();
    for (const code of shown.codes) counts.set(code, (counts.get(code) || 0) + 1);
    shown.names.slice(0, 24).forEach((name, code) => {
      const button = document.createElement("button"), dot = document.createElement("b"), text = document.createElement("span");
      button.type = "button"; dot.style.background = css(shown.colours[code]);
      text.textContent = name; text.title = name;
      button.setAttribute("aria-pressed", "false");
      button.append(dot, text);
      button.addEventListener("click", () => {
        state.only = state.only === code ? null : code;
        [...legend.children].forEach((other, i) => other.setAttribute("aria-pressed", String(i === state.only)));
        draw();
      });
      legend.append(button);
    });
    if (shown.names.length > 24) legend.append(Object.assign(document.createElement("span"), { className: "scale", textContent: `and ${shown.names.length - 24} more` }));
  }

  // The map may be stretched sideways a little to use the room: its axes mean nothing.
  const side = () => Math.min(width, height) - 2 * MARGIN;
  const wide = () => Math.max(side(), Math.min(1.55 * side(), width - 2 * MARGIN));
  const toX = (i) => width / 2 + (places[2 * i] - state.x) * wide() * state.zoom;
  const toY = (i) => height / 2 + (places[2 * i + 1] - state.y) * side() * state.zoom;

  function draw() { if (!waiting) { waiting = true; requestAnimationFrame(paint); } }

  function paint() {
    waiting = false;
    if (width < 2 || height < 2) return;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const visible = [];
    for (let i = 0; i < num; i++) {
      const x = toX(i), y = toY(i);
      if (x > -30 && y > -30 && x < width + 30 && y < height + 30) visible.push(i);
    }
    const chosen = (i) => state.only === null || shown.codes[i] === state.only;
    const pictures = data.sprites && visible.length <= PICTURES && state.zoom > 1.5;
    const radius = Math.max(1.6, Math.min(5, 90 / Math.sqrt(num))) * Math.min(2, Math.sqrt(state.zoom));
    const board = context.createImageData(canvas.width, canvas.height), stamp = mask(radius * ratio, canvas.width);
    const words = new Uint32Array(board.data.buffer), across = board.width, down = board.height;
    const [w, h] = [wide() * state.zoom * ratio, side() * state.zoom * ratio], [left, top] = [across / 2 - state.x * w, down / 2 - state.y * h];
    for (const pass of [false, true]) {
      for (const i of visible) {
        if (chosen(i) !== pass || (pictures && pass && sprite(i))) continue;
        const column = Math.round(left + places[2 * i] * w), row = Math.round(top + places[2 * i + 1] * h);
        dot(words, across, down, stamp, column, row, packed[i], pass ? 0.99 : 0.12);
      }
    }
    context.putImageData(board, 0, 0);
    if (pictures) for (const i of visible) if (chosen(i)) picture(i);
    context.globalAlpha = 1;
    if (state.near >= 0 && !pictures) {
      context.lineWidth = 2; context.strokeStyle = getComputedStyle(canvas).color;
      context.beginPath(); context.arc(toX(state.near), toY(state.near), radius + 3, 0, 7); context.stroke();
    }
  }

  // Dots are blended by hand: twenty thousand arcs take a second where there is no graphics card, this
  // takes some milliseconds. A mask is the pixels of a dot, as steps from its middle.
  function mask(radius, across) {
    const reach = Math.ceil(radius + 0.5), steps = [], cover = [];
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) {
        const share = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(x, y)));
        if (share > 0.03) { steps.push(y * across + x); cover.push(share); }
      }
    }
    return { reach, steps: Int32Array.from(steps), cover: Float32Array.from(cover) };
  }

  function dot(words, across, down, { reach, steps, cover }, column, row, colour, alpha) {
    if (column < reach || row < reach || column + reach >= across || row + reach >= down) return;
    const middle = row * across + column, red = colour & 255, green = (colour >> 8) & 255, blue = colour >> 16;
    for (let i = 0; i < steps.length; i++) {
      const at = middle + steps[i], over = alpha * cover[i], word = words[at];
      if (word === 0 || over > 0.98) { words[at] = colour | ((255 * over) << 24); continue; }
      const under = ((word >>> 24) / 255) * (1 - over), whole = over + under, a = over / whole, b = under / whole;
      words[at] = (red * a + (word & 255) * b) | ((green * a + ((word >> 8) & 255) * b) << 8)
        | ((blue * a + ((word >> 16) & 255) * b) << 16) | ((255 * whole) << 24);
    }
  }

  function picture(i) {
    const found = sprite(i), size = Math.min(64, 30 + 4 * Math.log2(state.zoom));
    if (!found) return;
    const x = toX(i) - size / 2, y = toY(i) - size / 2;
    context.globalAlpha = 1;
    context.drawImage(found.sheet, found.x, found.y, found.side, found.side, x, y, size, size);
    context.lineWidth = i === state.near ? 3 : 1.5; context.strokeStyle = css(colours[i]);
    context.strokeRect(x, y, size, size);
  }

  function nearest(px, py) {
    let best = -1, least = 20 * 20;
    for (let i = 0; i < num; i++) {
      if (state.only !== null && shown.codes[i] !== state.only) continue;
      const dx = toX(i) - px, dy = toY(i) - py, d = dx * dx + dy * dy;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }

  function point(px, py) {
    const near = nearest(px, py);
    if (near !== state.near) { state.near = near; draw(); }
    tip.hidden = near < 0;
    if (near >= 0) show(near);
  }

  function show(near) {
    const image = tip.querySelector("canvas"), found = sprite(near), brush = image.getContext("2d");
    image.hidden = !data.sprites;
    brush.clearRect(0, 0, image.width, image.height);
    if (found) brush.drawImage(found.sheet, found.x, found.y, found.side, found.side, 0, 0, image.width, image.height);
    tip.querySelector("b").textContent = data.keys[near];
    const label = data.label && data.label.codes[near] >= 0 ? `${data.label.names[data.label.codes[near]]} · ` : "";
    tip.querySelector("span").textContent = `${label}${called(data.cluster[near])} · outlier score ${data.outlier[near].toFixed(3)}`;
    const x = toX(near), y = toY(near), box = tip.offsetHeight;
    tip.style.left = `${x + 190 > width ? Math.max(4, x - 186) : x + 14}px`;
    tip.style.top = `${Math.max(4, Math.min(height - box - 4, y - box / 2))}px`;
  }

  function zoomTo(factor, px = width / 2, py = height / 2) {
    const zoom = Math.max(1, Math.min(200, state.zoom * factor));
    const change = 1 / state.zoom - 1 / zoom;
    state.x += (px - width / 2) * change / wide();
    state.y += (py - height / 2) * change / side();
    if (zoom === 1) { state.x = 0.5; state.y = 0.5; }
    state.zoom = zoom; hint.style.opacity = zoom > 1 ? 0 : 1;
    canvas.style.touchAction = zoom > 1 ? "none" : "pan-y";
    draw();
  }
  function move(dx, dy) {
    state.x = Math.max(-0.2, Math.min(1.2, state.x - dx / wide() / state.zoom));
    state.y = Math.max(-0.2, Math.min(1.2, state.y - dy / side() / state.zoom));
    draw();
  }

  function relayout(name) {
    const from = places.slice(), to = Float32Array.from(data.layouts[name], (v) => v / GRID);
    const began = performance.now(), length = calm ? 1 : 700;
    tip.hidden = true; state.near = -1;
    const step = (now) => {
      const t = Math.min(1, Math.max(0, (now - began) / length)), ease = t * t * (3 - 2 * t);
      for (let i = 0; i < to.length; i++) places[i] = from[i] + (to[i] - from[i]) * ease;
      paint();
      if (t < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  for (const group of atlas.querySelectorAll("[data-choice]")) {
    group.addEventListener("click", (event) => {
      const value = event.target.dataset.value, what = group.dataset.choice;
      if (!value) return;
      if (what === "zoom") {
        if (value === "reset") { state.zoom = 1; state.x = state.y = 0.5; canvas.style.touchAction = "pan-y"; draw(); }
        else zoomTo(value === "in" ? 1.8 : 1 / 1.8);
        return;
      }
      for (const other of group.children) other.setAttribute("aria-pressed", String(other === event.target));
      if (what === "colour") { state.colour = value; recolour(); draw(); }
      else if (state.layout !== value) { state.layout = value; relayout(value); }
    });
  }

  const pointers = new Map();
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, at(event));
    if (event.pointerType === "touch") point(...at(event)); else canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId), [x, y] = at(event);
    if (!before) { point(x, y); return; }
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
      zoomTo(far([x, y]) / Math.max(1, far(before)), (x + other[0]) / 2, (y + other[1]) / 2);
    } else { canvas.classList.add("moving"); tip.hidden = true; move(x - before[0], y - before[1]); }
    pointers.set(event.pointerId, [x, y]);
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(name, (event) => { pointers.delete(event.pointerId); canvas.classList.remove("moving"); });
  }
  canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") { tip.hidden = true; state.near = -1; draw(); } });
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomTo(Math.exp(-event.deltaY * 0.0016), ...at(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    if (steps[event.key]) move(...steps[event.key]);
    else if (event.key === "+" || event.key === "=") zoomTo(1.5);
    else if (event.key === "-") zoomTo(1 / 1.5);
    else if (event.key === "0") { state.zoom = 1; state.x = state.y = 0.5; draw(); }
    else return;
    event.preventDefault();
  });

  new ResizeObserver(() => { const box = canvas.getBoundingClientRect(); width = box.width; height = box.height; draw(); }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  recolour();
  const box = canvas.getBoundingClientRect(); width = box.width; height = box.height;
  paint();
})();
