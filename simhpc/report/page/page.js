"use strict";
// The parts of the report that answer: the matrix, and the two drawings of the clusters. Everything else is plain HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const models = data.models;
  const count = models.length;
  const byId = (id) => document.getElementById(id);

  // ---- numbers of pairs -------------------------------------------------------------------------------------------

  // The halves of a symmetric matrix are one: row after row of its upper one, the diagonal included.
  const at = (values, a, b) => {
    const [row, column] = a < b ? [a, b] : [b, a];
    return values[row * count - (row * (row - 1)) / 2 + column - row];
  };
  const isKnown = (value) => value !== null && value >= 0;
  const sat = (a, b) => at(data.sat, a, b);
  const decimals = (value, n) => (value === null ? "unknown" : value.toFixed(n));
  const hasCounts = data.nFooled.some((n) => n >= 0);
  const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`;

  function direction(a, b) {
    const fooled = data.nFooled[a * count + b];
    const common = at(data.nCommon, a, b);
    const share = isKnown(fooled) && common > 0 ? `${percent(fooled, common)} (${fooled} of ${common} images)` : "unknown";
    return a === b
      ? `Attacks on it fool it itself: ${share}.`
      : `Attacks on ${models[a].key} fool ${models[b].key}: ${share}.`;
  }

  function describe(a, b) {
    const value = sat(a, b);
    const low = at(data.ciLow, a, b);
    const high = at(data.ciHigh, a, b);
    const both = a === b ? `${models[a].key} with itself` : `${models[a].key} and ${models[b].key}`;
    const interval =
      low === null || high === null
        ? ""
        : ` (${+(100 * data.confidence).toFixed(2)} % interval ${decimals(low, 2)} to ${decimals(high, 2)})`;
    const rates = !hasCounts ? "" : a === b ? ` ${direction(a, b)}` : ` ${direction(a, b)} ${direction(b, a)}`;
    return `${both}: SAT ${decimals(value, 2)}${interval}.${rates}`;
  }

  // ---- the matrix -------------------------------------------------------------------------------------------------

  const box = byId("matrix-box");
  const cells = byId("cells");
  const canvas = byId("canvas");
  const rowNames = byId("row-names");
  const columnNames = byId("column-names");
  const readout = byId("readout");
  const MOST_NAMES_PX = 170;
  const MOST_CELL_PX = 56;
  let order = Object.values(data.orders)[0];
  let cell = 12;
  let namesPx = 100;
  let current = null; // [row, column], places in the order that is shown
  let found = new Set(); // models that the search matches

  const names = [rowNames, columnNames].map((parent) =>
    models.map((model) => {
      const label = document.createElement("span");
      label.className = "name";
      label.textContent = model.key;
      label.title = model.key;
      parent.append(label);
      return label;
    }),
  );
  const [crossRow, crossColumn, frame] = ["cross", "cross", ""].map((kind) => {
    const overlay = document.createElement("div");
    overlay.className = kind;
    overlay.hidden = true;
    cells.append(overlay);
    return overlay;
  });
  frame.id = "frame";

  function place(element, left, top, width, height) {
    Object.assign(element.style, {
      left: `${left}px`,
      top: `${top}px`,
      width: `${width}px`,
      height: `${height}px`,
    });
    element.hidden = false;
  }

  function colourOf(value) {
    const { low, high, colours } = data.scale;
    const share = Math.min(1, Math.max(0, (value - low) / (high - low)));
    return colours[Math.round(share * (colours.length - 1))];
  }

  function hatch(context, left, top, width, height) {
    context.fillStyle = "#c4c4c4";
    context.fillRect(left, top, width, height);
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    context.strokeStyle = "#6b6b6b";
    context.lineWidth = 1;
    context.beginPath();
    for (let x = left - height; x < left + width; x += 5) {
      context.moveTo(x, top + height);
      context.lineTo(x + height, top);
    }
    context.stroke();
    context.restore();
  }

  function layOut(room, leastCell = count > 400 ? 5 : 11) {
    const fontPx = (size) => Math.max(7, Math.min(13, size - 2));
    const measure = document.createElement("canvas").getContext("2d");
    const family = getComputedStyle(document.body).fontFamily;
    const long = (size) => {
      measure.font = `${fontPx(size)}px ${family}`;
      return Math.ceil(Math.max(...models.map((model) => measure.measureText(model.key).width))) + 12;
    };
    const mostNames = Math.min(MOST_NAMES_PX, room * 0.36);
    namesPx = Math.min(mostNames, long(MOST_CELL_PX));
    const fitting = (px) => Math.floor((px - namesPx) / count);
    // All rows in view, unless the cells would be small.
    const most = Math.min(MOST_CELL_PX, Math.max(28, fitting(0.86 * window.innerHeight - 2)));
    cell = Math.max(leastCell, Math.min(most, fitting(room)));
    namesPx = Math.min(mostNames, long(cell));
    place(byId("corner"), 0, 0, namesPx, namesPx);
    for (const [element, width, height] of [
      [rowNames, namesPx, cell * count],
      [columnNames, cell * count, namesPx],
    ]) {
      element.style.width = `${width}px`;
      element.style.height = `${height}px`;
      element.style.fontSize = `${fontPx(cell)}px`;
    }
    draw();
  }

  function draw() {
    const side = cell * count;
    // Browsers have no canvas larger than this.
    const scale = Math.min(window.devicePixelRatio || 1, 8192 / side);
    canvas.width = canvas.height = Math.round(side * scale);
    canvas.style.width = canvas.style.height = `${side}px`;
    const context = canvas.getContext("2d");
    context.scale(canvas.width / side, canvas.height / side);
    const gap = cell >= 10 ? 1 : 0;
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, side, side);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = `${Math.min(12, cell / 3)}px sans-serif`;
    const middle = (data.scale.low + data.scale.high) / 2;
    for (let row = 0; row < count; row++) {
      for (let column = 0; column < count; column++) {
        const value = sat(order[row], order[column]);
        if (value === null) {
          hatch(context, column * cell, row * cell, cell - gap, cell - gap);
          continue;
        }
        context.fillStyle = colourOf(value);
        context.fillRect(column * cell, row * cell, cell - gap, cell - gap);
        if (cell >= 32) {
          context.fillStyle = value > middle ? "#000000" : "#ffffff";
          context.fillText(value.toFixed(2), (column + 0.5) * cell, (row + 0.5) * cell);
        }
      }
    }
    const group = { cluster: "cluster", family: "family" }[byId("order").value];
    if (group) outline(context, order.map((model) => models[model][group]));
    order.forEach((model, position) => {
      Object.assign(names[0][model].style, {
        top: `${position * cell}px`,
        height: `${cell}px`,
        lineHeight: `${cell}px`,
        maxWidth: `${namesPx}px`,
      });
      Object.assign(names[1][model].style, {
        left: `${position * cell}px`,
        width: `${cell}px`,
        lineHeight: `${cell}px`,
        maxHeight: `${namesPx}px`,
      });
    });
    // What is read out or copied comes in the order that is seen.
    names.forEach((labels, axis) => [rowNames, columnNames][axis].append(...order.map((model) => labels[model])));
    showFound();
    showCurrent();
  }

  function outline(context, groups) {
    let start = 0;
    for (let end = 1; end <= count; end++) {
      if (end < count && groups[end] === groups[start]) continue;
      // White inside black is seen on every colour of the scale.
      for (const [colour, width] of [
        ["#000000", 3.5],
        ["#ffffff", 1.5],
      ]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.strokeRect(start * cell, start * cell, (end - start) * cell - 1, (end - start) * cell - 1);
      }
      start = end;
    }
  }

  function showCurrent() {
    for (const labels of names) for (const label of labels) label.classList.remove("current");
    const side = cell * count;
    if (current === null) {
      crossRow.hidden = crossColumn.hidden = frame.hidden = true;
      return;
    }
    const [row, column] = current;
    place(crossRow, 0, row * cell, side, cell);
    place(crossColumn, column * cell, 0, cell, side);
    place(frame, column * cell, row * cell, cell - 1, cell - 1);
    names[0][order[row]].classList.add("current");
    names[1][order[column]].classList.add("current");
    const text = describe(order[row], order[column]);
    if (readout.textContent !== text) readout.textContent = text;
  }

  function select(row, column) {
    current = [row, column];
    showCurrent();
  }

  function bringIntoView(row, column) {
    const view = { width: box.clientWidth - namesPx, height: box.clientHeight - namesPx };
    const nearest = (position, scrolled, room) =>
      Math.max(Math.min(scrolled, position * cell), (position + 1) * cell - room);
    box.scrollLeft = nearest(column, box.scrollLeft, view.width);
    box.scrollTop = nearest(row, box.scrollTop, view.height);
  }

  function cellUnder(event) {
    const area = canvas.getBoundingClientRect();
    const [column, row] = [event.clientX - area.left, event.clientY - area.top].map((px) => Math.floor(px / cell));
    return row >= 0 && column >= 0 && row < count && column < count ? [row, column] : null;
  }

  for (const kind of ["pointermove", "pointerdown"]) {
    cells.addEventListener(kind, (event) => {
      const under = cellUnder(event);
      if (under) select(...under);
    });
  }

  box.addEventListener("focus", () => {
    if (current === null) select(0, Math.min(1, count - 1));
  });

  box.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const [row, column] = current ?? [0, 0];
    const last = count - 1;
    const target = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [row, 0],
      End: [row, last],
      PageUp: [0, column],
      PageDown: [last, column],
    }[event.key];
    if (!target) return;
    event.preventDefault();
    const [to, into] = target.map((position) => Math.min(last, Math.max(0, position)));
    select(to, into);
    bringIntoView(to, into);
  });

  byId("order").addEventListener("change", (event) => {
    const shown = current?.map((position) => order[position]);
    order = data.orders[event.target.value];
    if (shown) current = shown.map((model) => order.indexOf(model));
    draw();
  });

  // ---- finding a model --------------------------------------------------------------------------------------------

  const inDrawings = [...document.querySelectorAll("[data-model]")];

  function showFound() {
    for (const band of cells.querySelectorAll(".band")) band.remove();
    const side = cell * count;
    order.forEach((model, position) => {
      for (const labels of names) labels[model].classList.toggle("found", found.has(model));
      if (!found.has(model)) return;
      for (const rectangle of [
        [0, position * cell, side, cell],
        [position * cell, 0, cell, side],
      ]) {
        const band = document.createElement("div");
        band.className = "band";
        place(band, ...rectangle);
        cells.append(band);
      }
    });
    for (const mark of inDrawings) mark.classList.toggle("found", found.has(Number(mark.dataset.model)));
  }

  byId("search").addEventListener("input", (event) => {
    const text = event.target.value.trim().toLowerCase();
    const exact = models.findIndex((model) => model.key.toLowerCase() === text);
    const matches =
      text === ""
        ? []
        : exact >= 0
          ? [exact]
          : order.filter((model) => [models[model].key, models[model].timm].some((name) => name.toLowerCase().includes(text)));
    found = new Set(matches);
    const listed = matches.slice(0, 10).map((model) => models[model].key);
    const more = matches.length > listed.length ? ` and ${matches.length - listed.length} more` : "";
    byId("search-status").textContent =
      text === "" ? "" : matches.length === 0 ? "No model matches." : `Found: ${listed.join(", ")}${more}`;
    showFound();
    if (matches.length > 0) {
      const position = order.indexOf(matches[0]);
      bringIntoView(position, position);
    }
  });

  // ---- one model in the plane and the tree -------------------------------------------------------------------------

  const pick = byId("pick");
  const nothingPicked = byId("picked").textContent;

  function describeModel(model) {
    const { key, timm, family, cluster, stability, accuracy } = models[model];
    const others = models
      .map((_, other) => other)
      .filter((other) => other !== model && sat(model, other) !== null)
      .sort((a, b) => sat(model, b) - sat(model, a) || a - b)
      .slice(0, 3)
      .map((other) => `${models[other].key} (SAT ${decimals(sat(model, other), 2)})`);
    const parts = [
      timm && timm !== key ? timm : "",
      family,
      isKnown(cluster) ? `cluster ${cluster}` + (isKnown(stability) ? ` (stability ${decimals(stability, 2)})` : "") : "",
      accuracy === "unknown" ? "" : `accuracy ${accuracy}`,
      others.length ? `most alike: ${others.join(", ")}` : "",
    ];
    return `${key}: ${parts.filter(Boolean).join("; ")}`;
  }

  function showModel(model) {
    for (const mark of inDrawings) {
      const isCurrent = Number(mark.dataset.model) === model;
      mark.classList.toggle("current", isCurrent);
      if (isCurrent && mark.closest("#plane")) mark.parentNode.append(mark); // over the others
    }
    byId("picked").textContent = model === null ? nothingPicked : describeModel(model);
  }

  const picked = () => (pick.value === "" ? null : Number(pick.value));
  pick.addEventListener("change", () => showModel(picked()));
  for (const drawing of document.querySelectorAll(".drawings svg")) {
    drawing.addEventListener("pointerleave", () => showModel(picked()));
  }
  for (const mark of inDrawings) {
    const model = Number(mark.dataset.model);
    mark.addEventListener("pointerenter", () => {
      if (!mark.classList.contains("current")) showModel(model);
    });
    mark.addEventListener("click", () => {
      pick.value = String(model);
      showModel(model);
    });
  }

  // ---- legend, sizes ----------------------------------------------------------------------------------------------

  const bar = byId("legend-bar").getContext("2d");
  data.scale.colours.forEach((colour, x) => {
    bar.fillStyle = colour;
    bar.fillRect(x, 0, 1, 1);
  });
  const isAnyKnown = data.sat.some((value) => value !== null);
  for (const part of ["low", "bar", "high"]) byId(`legend-${part}`).hidden = !isAnyKnown;
  byId("legend-low").textContent = `SAT ${data.scale.low.toFixed(2)}`;
  byId("legend-high").textContent = data.scale.high.toFixed(2);
  hatch(byId("legend-hatch").getContext("2d"), 0, 0, 24, 14);
  byId("legend-unknown").hidden = data.sat.every((value) => value !== null);

  const section = byId("matrix");
  let roomPx = 0;
  function fit() {
    if (section.clientWidth === roomPx) return;
    roomPx = section.clientWidth;
    // Less its border and scroll bar.
    layOut(roomPx - (box.offsetWidth - box.clientWidth));
  }
  new ResizeObserver(fit).observe(section);
  // On paper nothing can be scrolled or opened.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
    layOut(680, 1);
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
    layOut(roomPx - (box.offsetWidth - box.clientWidth));
  });
  fit();
})();
