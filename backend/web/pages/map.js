// The map of a project: draws all scans, describes the scan under the pointer, and selects scans.
// Data arrives as columns from .../atlas and is only inserted as text, never as markup.
"use strict";

(() => {
  const { t } = scanqueue;
  const view = document.getElementById("map-view");
  const frame = document.getElementById("map-frame");
  const plot = document.getElementById("map-plot");
  const line = document.querySelector("#map-line polygon");
  const notice = document.getElementById("map-notice");
  const legend = document.getElementById("map-legend");
  const colour = document.getElementById("map-colour");
  const chosen = document.getElementById("map-chosen");
  const message = document.getElementById("map-message");
  const undo = document.getElementById("map-undo");
  const form = document.getElementById("map-choose");
  const group = document.getElementById("map-group");
  const numbers = document.getElementById("map-tasks");
  const thumb = document.getElementById("map-thumb");
  const noThumb = document.getElementById("map-thumb-none");
  const wishes = [...view.querySelectorAll("[data-wish]")];
  const modes = [...view.querySelectorAll("[data-mode]")];
  const facts = Object.fromEntries([...view.querySelectorAll("[data-fact]")].map((e) => [e.dataset.fact, e]));

  const NUMBERED = 30; // first scans of the queue, shown with their place in the order
  const FEW = 5000; // maximum number of marks without WebGL
  const REST = 120; // milliseconds that the mouse must rest on a mark before its picture is loaded
  const RINGED = 5000; // maximum number of rings; more would hide the map
  const STEP = 4; // pixels between two corners of a drawn line
  const SLOWLY = 30000; // milliseconds between two routine reloads
  const RELOADS = [2000, 6000, 15000]; // milliseconds after a change at which the new order may be ready

  const STATES = ["open", "labelled", "problem", "skipped"];
  const STATE_NAMES = STATES.map((name) => t(`state_${name}`));
  const SYMBOLS = ["circle", "square", "x", "triangle-down"];
  const OUTLINES = [ // the same symbols for the legend, in a box of 16 x 16
    "M8 3a5 5 0 1 0 .01 0z",
    "M3 3h10v10h-10z",
    "M3 5l2-2 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z",
    "M2 4h12l-6 10z",
  ];
  const PICKS = { medoid: "star", farthest: "triangle-up" };
  const OTHER_PICK = "diamond";
  const PICK_OUTLINES = {
    star: "M8 1l2 5h5l-4 3 2 6-5-4-5 4 2-6-4-3h5z",
    "triangle-up": "M8 2l6 11h-12z",
    diamond: "M8 1l6 7-6 7-6-7z",
  };
  const PICK_COLOUR = "#000000";
  // suitable for colour-blind readers: Paul Tol's muted and high-contrast schemes, and steps of viridis, dark = high
  const CLUSTERS = ["#332288", "#44aa99", "#cc6677", "#88ccee", "#882255", "#999933", "#117733", "#aa4499", "#ddcc77"];
  const STATE_COLOURS = ["#77aadd", "#004488", "#bb5566", "#ddaa33"];
  const WISH_COLOURS = ["#bbbbbb", "#004488", "#bb5566"];
  const STEPS = ["#a0da39", "#6ece58", "#35b779", "#1f9e89", "#26828e", "#31688e", "#3e4989", "#482878", "#440154"];
  const NONE = "#bbbbbb";

  let atlas = null;
  let text = ""; // the atlas as JSON
  let drawn = []; // for each trace, its rows in the atlas
  let rows = null; // rows on the map: all, or a sample without WebGL
  let selection = []; // selected rows that have no label
  let outlines = []; // closed lines drawn around the selection, [[x, y], ...] on the map
  let ringed = []; // rows with a ring: selected without a line
  let change = null; // number of the last change, for undo
  let at = -1; // row shown in the panel
  let under = -1; // row under the mouse, else -1
  let mode = "pan";
  let hindrance = ""; // why WebGL cannot be used, else ""
  let touched = false;
  let resting = 0;

  // -- loading ------------------------------------------------------------------------------------

  async function ask(path, body) {
    const options = body === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    };
    const response = await fetch(view.dataset.api + path, options);
    const answer = await response.text();
    if (response.ok) return answer;
    let why = t("status", { status: response.status });
    try { why = JSON.parse(answer).error || why; } catch { /* not JSON: the status must do */ }
    throw new Error(why);
  }

  function script(address) {
    return new Promise((resolve, reject) => {
      const element = document.createElement("script");
      element.src = address;
      element.onload = resolve;
      element.onerror = () => reject(new Error(t("map_script")));
      document.head.append(element);
    });
  }

  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

  // Why WebGL cannot be used here, "" if it can.
  function obstacle() {
    try {
      const gl = document.createElement("canvas").getContext("webgl");
      if (!gl || !gl.getExtension("ANGLE_instanced_arrays") || !gl.getExtension("OES_element_index_uint")) {
        return t("map_no_webgl");
      }
    } catch { return t("map_no_webgl"); }
    try { new Function(""); } catch { return t("map_blocked"); }
    return "";
  }

  // A sample of rows for slow browsers: the queue, the labelled scans, and a fixed random choice of the others.
  function some(limit) {
    const count = atlas.task.length;
    const key = new Float64Array(count);
    let seed = 1;
    for (let i = 0; i < count; i++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      key[i] = (atlas.served[i] ? 0 : atlas.state[i] === 1 ? 1 : 2) + seed / 2 ** 32;
    }
    return Uint32Array.from(key.keys()).sort((a, b) => key[a] - key[b]).subarray(0, limit);
  }

  // -- drawing ------------------------------------------------------------------------------------

  const short = (value) => (value === null || value === undefined ? t("unknown") : Number(value.toPrecision(3)).toString());

  // {of: row -> class, names, colours} for the chosen colouring; later classes are drawn on top.
  function classes(by) {
    if (by === "cluster") {
      const names = [t("no_cluster")];
      for (let c = 0; c < atlas.clusters; c++) names.push(t("cluster", { number: c + 1 }));
      const colours = names.map((_, c) => (c ? CLUSTERS[(c - 1) % CLUSTERS.length] : NONE));
      return { of: (i) => atlas.cluster[i] + 1, names, colours };
    }
    if (by === "state") return { of: (i) => atlas.state[i], names: STATE_NAMES, colours: STATE_COLOURS };
    if (by === "wish") {
      return { of: (i) => (atlas.wish[i] < 0 ? 2 : atlas.wish[i]), names: [t("wish_usual"), t("wish_next"), t("wish_out")], colours: WISH_COLOURS };
    }
    const values = atlas[by];
    const missing = by === "round" ? -1 : null;
    let low = Infinity;
    let high = -Infinity;
    for (const v of values) {
      if (v === missing) continue;
      if (v < low) low = v;
      if (v > high) high = v;
    }
    const nothing = t(by === "round" ? "unlabelled" : "unknown");
    if (low > high) return { of: () => 0, names: [nothing], colours: [NONE] };
    const whole = by === "round";
    const count = whole ? Math.min(STEPS.length, high - low + 1) : low === high ? 1 : STEPS.length;
    const width = (whole ? high - low + 1 : high - low) / count || 1;
    const names = [nothing];
    const colours = [NONE];
    for (let c = 0; c < count; c++) {
      const from = whole ? Math.ceil(low + c * width) : low + c * width;
      const to = whole ? Math.ceil(low + (c + 1) * width) - 1 : low + (c + 1) * width;
      names.push(whole ? t(from === to ? "round" : "rounds", { from, to }) : t("range", { from: short(from), to: short(to) }));
      colours.push(STEPS[count === 1 ? STEPS.length - 1 : Math.round((c * (STEPS.length - 1)) / (count - 1))]);
    }
    return { of: (i) => (values[i] === missing ? 0 : 1 + Math.min(count - 1, Math.floor((values[i] - low) / width))), names, colours };
  }

  // One trace per colour and symbol in use: traces of a single colour are much faster.
  function traces(type, look) {
    const sorts = look.colours.length * STATES.length;
    const sort = new Uint16Array(rows.length);
    const sizes = new Uint32Array(sorts);
    rows.forEach((row, k) => {
      sort[k] = look.of(row) * STATES.length + atlas.state[row];
      sizes[sort[k]]++;
    });
    const parts = Array.from(sizes, (n) => ({ x: new Float32Array(n), y: new Float32Array(n), rows: new Uint32Array(n), n: 0 }));
    rows.forEach((row, k) => {
      const part = parts[sort[k]];
      part.x[part.n] = atlas.x[row];
      part.y[part.n] = atlas.y[row];
      part.rows[part.n++] = row;
    });
    const many = rows.length;
    const size = many > 50000 ? 3 : many > 10000 ? 4 : many > 2000 ? 6 : 9;
    const found = [];
    drawn = [];
    parts.forEach((part, s) => {
      if (!part.n) return;
      const state = s % STATES.length;
      drawn.push(part.rows);
      found.push({
        type, mode: "markers", x: part.x, y: part.y, hoverinfo: "none", showlegend: false,
        marker: {
          color: look.colours[Math.floor(s / STATES.length)], symbol: SYMBOLS[state], size: size + (state ? 3 : 0), opacity: 0.85,
          line: { width: 0 },
        },
      });
    });
    const first = heads();
    drawn.push(Uint32Array.from(first));
    found.push({
      type, mode: "markers", x: first.map((i) => atlas.x[i]), y: first.map((i) => atlas.y[i]), hoverinfo: "none", showlegend: false,
      marker: {
        color: first.map((i) => look.colours[look.of(i)]), symbol: first.map(pickSymbol), size: 13, opacity: 1,
        line: { width: 2, color: PICK_COLOUR },
      },
    });
    drawn.push(Uint32Array.from(ringed));
    found.push({
      type, mode: "markers", x: ringed.map((i) => atlas.x[i]), y: ringed.map((i) => atlas.y[i]), hoverinfo: "none", showlegend: false,
      marker: { color: PICK_COLOUR, symbol: "circle-open", size: size + 5, opacity: 1, line: { width: 1 } },
    });
    return found;
  }

  const kind = (row) => (atlas.kind[row] < 0 ? "" : atlas.kinds[atlas.kind[row]]);
  const pickSymbol = (row) => PICKS[kind(row)] || OTHER_PICK;

  // The first rows of the queue; one slice per volume, as all slices of a volume share a place on the map.
  function heads() {
    const order = [], found = [], places = new Set();
    atlas.served.forEach((served, i) => { if (served) order.push(i); });
    order.sort((a, b) => atlas.rank[a] - atlas.rank[b]);
    for (let n = 0; n < order.length && found.length < NUMBERED; n++) {
      const place = `${atlas.x[order[n]]},${atlas.y[order[n]]}`;
      if (!places.has(place)) found.push(order[n]);
      places.add(place);
    }
    return found;
  }

  function layout(look, by) {
    const marks = by === "cluster" && look.names.length > 2 ? middles() : [];
    marks.push(...heads().map((i) => ({
      x: atlas.x[i], y: atlas.y[i], text: String(atlas.rank[i]), showarrow: false, yshift: 15, borderpad: 1,
      bgcolor: "rgba(255,255,255,0.85)", font: { size: 12, color: "#000000" },
    })));
    return {
      xaxis: axis(atlas.x), yaxis: { ...axis(atlas.y), scaleanchor: "x" },
      margin: { l: 4, r: 4, t: 4, b: 4 }, showlegend: false, annotations: marks, shapes: outlines.map(shape),
      hovermode: "closest", hoverdistance: 12, spikedistance: 0, // otherwise plotly searches all marks on every mouse move
      dragmode: "pan", // this script draws the lines, as plotly's own lasso tests all marks on every move
      paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff", uirevision: "map",
    };
  }

  const shape = (loop) => ({
    type: "path", path: `M${loop.map((corner) => corner.join(",")).join("L")}Z`, line: { color: "#000000", width: 2, dash: "dot" },
    fillcolor: "rgba(0,0,0,0.05)",
  });

  // The name of each cluster near its centre, because colours repeat after the ninth.
  function middles() {
    const sums = Array.from({ length: atlas.clusters }, () => [0, 0, 0]);
    for (const i of rows) {
      const sum = sums[atlas.cluster[i]];
      if (sum) { sum[0] += atlas.x[i]; sum[1] += atlas.y[i]; sum[2]++; }
    }
    return sums.flatMap(([x, y, n], c) => (n ? [{
      x: x / n, y: y / n, text: t("cluster", { number: c + 1 }), showarrow: false, borderpad: 2, bgcolor: "rgba(255,255,255,0.75)",
      bordercolor: CLUSTERS[c % CLUSTERS.length], font: { size: 11, color: "#333333" }, ...gap(x / n, y / n),
    }] : []));
  }

  // Where a tag at this point covers the fewest marks and numbers, in pixels from the point; where there are too many
  // marks to be told apart, at the point.
  function gap(x, y) {
    if (rows.length > 2000) return {};
    const wide = axis(atlas.x).range, high = axis(atlas.y).range;
    const scale = Math.min(plot.clientWidth / (wide[1] - wide[0]), plot.clientHeight / (high[1] - high[0]));
    const at = (i) => [(atlas.x[i] - x) * scale, (atlas.y[i] - y) * scale];
    const taken = [...Array.from(rows, at), ...heads().map(at).map(([right, up]) => [right, up + 15])];
    const places = [];
    for (let right = -80; right <= 80; right += 10) for (let up = -60; up <= 60; up += 10) places.push([right, up]);
    places.sort((a, b) => Math.hypot(...a) - Math.hypot(...b));
    let fewest = Infinity, best = [0, 0];
    for (const place of places) {
      const covered = taken.filter((one) => Math.abs(one[0] - place[0]) < 38 && Math.abs(one[1] - place[1]) < 17).length;
      if (covered < fewest) [fewest, best] = [covered, place];
    }
    return { xshift: best[0], yshift: best[1] };
  }

  function axis(values) {
    let low = Infinity;
    let high = -Infinity;
    for (const v of values) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
    const room = (high - low) * 0.04 || 1;
    return { range: low > high ? [0, 1] : [low - room, high + room], visible: false, fixedrange: false };
  }

  function draw() {
    const by = colour.value;
    const look = classes(by);
    const type = view.dataset.drawnWith;
    const config = {
      displaylogo: false, displayModeBar: true, responsive: true, scrollZoom: true, doubleClick: "reset",
      modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d"]],
    };
    explain(look);
    return window.Plotly.react(plot, traces(type, look), layout(look, by), config);
  }

  function explain(look) {
    const counts = new Uint32Array(look.names.length);
    const states = new Uint32Array(STATES.length);
    for (let i = 0; i < atlas.task.length; i++) {
      counts[look.of(i)]++;
      states[atlas.state[i]]++;
    }
    const items = [];
    const byState = colour.value === "state";
    look.names.forEach((name, c) => {
      if (counts[c] && !byState) items.push(item(OUTLINES[0], look.colours[c], t("legend", { name, count: counts[c] })));
    });
    STATE_NAMES.forEach((name, s) => {
      if (states[s]) items.push(item(OUTLINES[s], byState ? STATE_COLOURS[s] : "#555555", t("legend", { name, count: states[s] })));
    });
    const kinds = [...new Set(heads().map(kind))];
    const shown = new Set(kinds.map((k) => PICKS[k] || OTHER_PICK));
    for (const symbol of shown) {
      const names = kinds.filter((k) => (PICKS[k] || OTHER_PICK) === symbol).join(", ");
      items.push(item(PICK_OUTLINES[symbol], PICK_COLOUR, t("legend_next", { kinds: names || t("chosen") })));
    }
    legend.replaceChildren(...items);
  }

  function item(outline, fill, words) {
    const name = "http://www.w3.org/2000/svg";
    const picture = document.createElementNS(name, "svg");
    picture.setAttribute("viewBox", "0 0 16 16");
    picture.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(name, "path");
    path.setAttribute("d", outline);
    path.setAttribute("fill", fill);
    picture.append(path);
    const element = document.createElement("li");
    element.append(picture, words);
    return element;
  }

  // -- pointing -----------------------------------------------------------------------------------

  const address = (row) => `${view.dataset.studio}/projects/${view.dataset.project}/data?task=${atlas.task[row]}`;

  function show(row) {
    if (row === at) return;
    at = row;
    const why = atlas.why[kind(row)] || "";
    document.getElementById("map-point-hint").hidden = true;
    document.getElementById("map-point").hidden = false;
    document.getElementById("map-why").textContent = why;
    document.getElementById("map-open").href = address(row);
    document.getElementById("map-open").hidden = !view.dataset.studio; // without its address, there is no link
    const rank = atlas.rank[row];
    const state = STATE_NAMES[atlas.state[row]];
    const values = {
      task: String(atlas.task[row]),
      state: atlas.round[row] < 0 ? state : t("state_round", { state, round: atlas.round[row] }),
      rank: !rank ? t("none") : atlas.served[row] ? t("in_queue", { rank }) : String(rank),
      entropy: short(atlas.entropy[row]),
      distance: short(atlas.distance[row]),
      score: short(atlas.score[row]),
      cluster: atlas.cluster[row] < 0 ? t("none") : String(atlas.cluster[row] + 1),
      wish: [t("wish_none"), t("wish_next"), t("wish_out")][atlas.wish[row] < 0 ? 2 : atlas.wish[row]],
    };
    for (const [name, value] of Object.entries(values)) facts[name].textContent = value;
    document.getElementById("map-panel").dataset.task = values.task;
    clearTimeout(resting);
    thumb.hidden = true;
    thumb.removeAttribute("src"); // otherwise the previous scan stays until the new one has loaded
    noThumb.hidden = atlas.state[row] !== 2; // there is no picture of an unreadable scan
    if (atlas.state[row] !== 2) resting = setTimeout(() => {
      thumb.alt = t("scan_alt", { task: values.task });
      thumb.src = `${view.dataset.scans}${values.task}.png?quiet=1&side=160`;
    }, REST);
  }

  thumb.addEventListener("load", () => { thumb.hidden = false; });
  thumb.addEventListener("error", () => { thumb.hidden = true; noThumb.hidden = !thumb.hasAttribute("src"); });

  const rowOf = (event) => drawn[event.points[0].curveNumber][event.points[0].pointNumber];

  function open(row) {
    show(row);
    if (touched || !view.dataset.studio) return; // on a touch screen, the link in the panel opens the task
    window.open(address(row), "_blank", "noopener");
  }

  function listen() {
    plot.on("plotly_hover", (event) => {
      under = rowOf(event);
      show(under);
    });
    plot.on("plotly_unhover", () => { under = -1; });
    plot.on("plotly_click", (event) => open(rowOf(event)));
    plot.on("plotly_relayout", (event) => { if (event.autosize) refit(); });
  }

  // Plotly keeps the range that filled the former box. Unless somebody zoomed in, all scans fill the new one.
  function refit() {
    const { xaxis, yaxis } = plot._fullLayout;
    const wide = axis(atlas.x).range, high = axis(atlas.y).range;
    const shown = ({ range }, [from, to]) => range[0] <= from + (to - from) / 50 && range[1] >= to - (to - from) / 50;
    if (!shown(xaxis, wide) || !shown(yaxis, high)) return;
    const { annotations } = layout(classes(colour.value), colour.value); // their tags have places for this size
    window.Plotly.relayout(plot, { "xaxis.range": wide, "yaxis.range": high, annotations });
  }

  function setMode(to) {
    mode = to;
    frame.dataset.mode = to;
    for (const button of modes) button.setAttribute("aria-pressed", String(button.dataset.mode === to));
  }

  // -- lasso and box ----------------------------------------------------------------

  // [x, y] in pixels of the frame to [x, y] on the map.
  function onMap([x, y]) {
    const { xaxis, yaxis } = plot._fullLayout;
    return [xaxis.p2d(x - xaxis._offset), yaxis.p2d(y - yaxis._offset)];
  }

  function beginLine(event) {
    touched = event.pointerType === "touch";
    if (mode === "pan" || !event.isPrimary || event.button || !event.target.closest(".nsewdrag")) return;
    event.preventDefault(); // hide the event from plotly
    const area = frame.getBoundingClientRect();
    const place = (e) => [e.clientX - area.left, e.clientY - area.top];
    const start = place(event);
    let corners = [start];
    const move = (e) => {
      const now = place(e);
      const last = corners[corners.length - 1];
      if (mode === "box") corners = [start, [now[0], start[1]], now, [start[0], now[1]]];
      else if (Math.hypot(now[0] - last[0], now[1] - last[1]) >= STEP) corners.push(now);
      line.setAttribute("points", corners.join(" "));
    };
    const stop = (e) => {
      frame.removeEventListener("pointermove", move);
      frame.removeEventListener("pointerup", stop);
      frame.removeEventListener("pointercancel", stop);
      line.setAttribute("points", "");
      if (e.type === "pointercancel") return;
      if (corners.length > 2) enclose(corners.map(onMap), e.shiftKey);
      else if (under >= 0) open(under);
      else clear();
    };
    frame.setPointerCapture(event.pointerId);
    frame.addEventListener("pointermove", move);
    frame.addEventListener("pointerup", stop);
    frame.addEventListener("pointercancel", stop);
  }

  // Select the scans inside the closed line; with `more`, add them to the selection.
  function enclose(loop, more) {
    outlines = more ? [...outlines, loop] : [loop];
    const boxes = outlines.map((corners) => {
      const xs = corners.map((c) => c[0]);
      const ys = corners.map((c) => c[1]);
      return [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    });
    const found = [];
    for (let i = 0; i < atlas.task.length; i++) {
      const x = atlas.x[i];
      const y = atlas.y[i];
      const near = ([left, right, low, high]) => x >= left && x <= right && y >= low && y <= high; // skips most of the work
      if (outlines.some((corners, k) => near(boxes[k]) && inside(corners, x, y))) found.push(i);
    }
    choose(found);
    outline([]);
  }

  function clear() {
    outlines = [];
    choose([]);
    outline([]);
  }

  // Show the selection on the map: the lines drawn, or rings around the rows.
  function outline(rings) {
    const redrawn = rings.length || ringed.length;
    ringed = rings.length > RINGED ? [] : rings;
    if (redrawn) draw();
    else window.Plotly.relayout(plot, { shapes: outlines.map(shape) });
  }

  function inside(corners, x, y) {
    let odd = false;
    for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
      const [xi, yi] = corners[i];
      const [xj, yj] = corners[j];
      if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
    }
    return odd;
  }

  // -- selecting -----------------------------------------------------------------------------------

  const scans = (count) => (t(count === 1 ? "scan" : "scans", { count }));

  // Only scans without a label can get a priority.
  function choose(found, remark = "") {
    selection = found.filter((row) => atlas.state[row] !== 1);
    const labelled = found.length - selection.length;
    const words = { scans: found.length ? scans(selection.length) : t("no_scans"), labelled, remark };
    chosen.textContent = t(labelled ? "selected_labelled" : "selected", words);
    for (const button of wishes) button.disabled = !selection.length;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!atlas) return;
    const wanted = new Set();
    let bad = "";
    for (const part of numbers.value.split(/[\s,;]+/).filter(Boolean)) {
      const range = /^(\d{1,15})(?:-(\d{1,15}))?$/.exec(part);
      if (range) wanted.add([Number(range[1]), Number(range[2] || range[1])]);
      else bad = part;
    }
    if (bad) {
      chosen.textContent = t("bad_number", { text: bad });
      return;
    }
    const ranges = [...wanted];
    const [sort, value] = group.value.split(":");
    const found = [];
    for (let i = 0; i < atlas.task.length; i++) {
      const grouped = sort && atlas[sort][i] === Number(value);
      if (grouped || ranges.some(([from, to]) => atlas.task[i] >= from && atlas.task[i] <= to)) found.push(i);
    }
    choose(found, found.length ? "" : t("no_such_scan"));
    outlines = [];
    if (plot.data) outline(selection);
    if (found.length) show(found[0]);
  });

  function fillGroups() {
    const count = new Uint32Array(atlas.clusters);
    let next = 0;
    let out = 0;
    for (let i = 0; i < atlas.task.length; i++) {
      if (atlas.cluster[i] >= 0) count[atlas.cluster[i]]++;
      if (atlas.wish[i] > 0) next++;
      if (atlas.wish[i] < 0) out++;
    }
    const options = [["", t("none")]];
    if (next) options.push(["wish:1", t("group_next", { count: next })]);
    if (out) options.push(["wish:-1", t("group_out", { count: out })]);
    count.forEach((n, c) => { if (n) options.push([`cluster:${c}`, t("group_cluster", { number: c + 1, count: n })]); });
    const before = group.value;
    group.replaceChildren(...options.map(([value, words]) => new Option(words, value)));
    if (options.some(([value]) => value === before)) group.value = before;
  }

  // Only what some scan has a value of can be chosen as a colour.
  function offerColours() {
    const none = { entropy: atlas.entropy.every((v) => v === null), score: atlas.score.every((v) => v === null), round: atlas.round.every((v) => v < 0) };
    for (const option of colour.options) {
      option.disabled = Boolean(none[option.value]);
      option.text = option.disabled ? t("no_colour", { name: option.dataset.name, reason: t(`no_${option.value}`) }) : option.dataset.name;
    }
    if (none[colour.value]) colour.value = "cluster";
    facts.score.parentElement.hidden = none.score;
  }

  // -- changing the priority ------------------------------------------------------------------------------------

  async function setPriority(what) {
    const tasks = selection.map((row) => atlas.task[row]);
    await send("wishes", { tasks, wish: what }, () => t(`done_${what}`, { scans: scans(tasks.length) }), true);
  }

  async function send(path, body, words, undoable) {
    for (const button of wishes) button.disabled = true;
    undo.hidden = true;
    message.textContent = t("sending");
    try {
      const answer = JSON.parse(await ask(path, body));
      change = answer.change;
      message.textContent = words();
      undo.hidden = !undoable;
      await refresh(true);
      for (const delay of RELOADS) setTimeout(() => refresh().catch(() => {}), delay);
    } catch (error) {
      message.textContent = t("failed", { reason: error.message });
      for (const button of wishes) button.disabled = !selection.length;
    }
  }

  for (const button of wishes) button.addEventListener("click", () => setPriority(button.dataset.wish));
  undo.addEventListener("click", () => send("undo", { change }, () => t("undone"), false));
  for (const button of modes) button.addEventListener("click", () => setMode(button.dataset.mode));
  frame.addEventListener("pointerdown", beginLine, true);
  frame.addEventListener("touchstart", (event) => { if (mode !== "pan") event.stopPropagation(); }, { capture: true, passive: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && selection.length) clear(); });
  colour.addEventListener("change", () => { if (plot.data) draw(); });

  // -- start ----------------------------------------------------------------------------------

  function take(answer) {
    text = answer;
    atlas = JSON.parse(answer);
    const count = atlas.task.length;
    const why = hindrance;
    rows = why && count > FEW ? some(FEW) : Uint32Array.from(atlas.task.keys());
    view.dataset.drawnWith = why ? "scatter" : "scattergl";
    notice.textContent = !count
      ? t("map_empty")
      : t(!why ? "map_all" : rows.length < count ? "map_some" : "map_slow", { why, shown: rows.length, count, scans: scans(count) });
    fillGroups();
    offerColours();
  }

  setInterval(() => { if (atlas && !document.hidden) refresh().catch(() => {}); }, SLOWLY);

  // Load the atlas again, and draw it if it has changed.
  async function refresh(mine = false) {
    const answer = await ask("atlas");
    if (answer === text || (selection.length && !mine)) return; // do not disturb a selection
    take(answer);
    at = -1;
    outlines = [];
    ringed = [];
    choose([]);
    await draw();
  }

  async function begin() {
    const coming = ask("atlas");
    coming.catch(() => {}); // reported below
    await painted(); // show the page before the large script is parsed
    const library = script(view.dataset.plotly);
    library.catch(() => {});
    hindrance = obstacle(); // while the others load: the first WebGL context takes a while
    take(await coming);
    await library;
    if (!atlas.task.length) return;
    await draw();
    listen();
  }

  begin().catch((error) => { notice.textContent = t("map_failed", { reason: error.message }); });
})();
