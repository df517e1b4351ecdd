"use strict";
// The page of a field: which period is shown, what is like the place that was picked, and what changed.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [times, rows, columns, kept] = data.shape;
  const vectors = Int8Array.from(atob(data.vectors), (letter) => letter.charCodeAt(0));
  const $ = (id) => document.getElementById(id);
  const frame = $("frame"), picture = $("picture"), layer = $("layer"), ring = $("ring"), slider = $("slider"), since = $("since");
  const thumbs = [...$("strip").querySelectorAll("button")];
  const choices = [...document.querySelectorAll("input[name=shown]")];
  const state = { time: 0, shown: "colours", place: null, since: 0, low: 0, high: 0, playing: null };

  // ---- what the layer shows: the cosines of all pixels of a period, NaN where nodata

  const start = (time, pixel) => (time * rows * columns + pixel) * kept;
  const missing = (at) => vectors[at] === -128;

  function cosine(at, other) {
    if (missing(at) || missing(other)) return NaN;
    let dot = 0, square = 0, another = 0;
    for (let k = 0; k < kept; k++) {
      dot += vectors[at + k] * vectors[other + k];
      square += vectors[at + k] ** 2;
      another += vectors[other + k] ** 2;
    }
    return Math.min(1, dot / Math.sqrt(square * another));
  }

  // With the place that was picked, or each with the same pixel in the period that change is counted from.
  function cosines(time) {
    const place = state.place && state.place.row * columns + state.place.column;
    const other = (pixel) => (state.shown === "change" ? start(state.since, pixel) : start(time, place));
    return Float32Array.from({ length: rows * columns }, (_, pixel) => cosine(start(time, pixel), other(pixel)));
  }

  // Where the scale ends: a percentile over all periods, so that a colour means the same in each.
  function scale() {
    const seen = [];
    for (let time = 0; time < times; time++) for (const value of cosines(time)) if (!Number.isNaN(value)) seen.push(value);
    const sorted = Float32Array.from(seen).sort();
    const last = sorted.length ? sorted[Math.floor(sorted.length * 0.02)] : 0;
    state.low = Math.min(Math.floor(last * 10) / 10, 0.9);
    state.high = Math.max(5, Math.ceil(degreesOf(last) / 5) * 5);
    $("low").textContent = state.low.toFixed(1).replace("-", "−");
    $("high").textContent = `${state.high}°`;
  }

  const degreesOf = (value) => (Math.acos(Math.max(-1, value)) * 180) / Math.PI;

  function draw(found) {
    const image = new ImageData(columns, rows), change = state.shown === "change";
    const ramp = change ? data.ramps.change : data.ramps.similarity;
    found.forEach((value, pixel) => {
      if (Number.isNaN(value)) return;
      const part = change ? degreesOf(value) / state.high : (value - state.low) / (1 - state.low);
      const shade = 3 * Math.round(Math.max(0, Math.min(1, part)) * 255);
      image.data.set([ramp[shade], ramp[shade + 1], ramp[shade + 2], 255], 4 * pixel);
    });
    layer.getContext("2d").putImageData(image, 0, 0);
  }

  // ---- words

  // Longitude and latitude of a pixel's centre, between the nodes of a lattice.
  function degrees(place) {
    const { side, lon, lat } = data.nodes;
    const part = (index, size) => (size > 1 ? (index / (size - 1)) * (side - 1) : 0);
    const y = part(place.row, rows), x = part(place.column, columns);
    const top = Math.min(Math.floor(y), side - 2), left = Math.min(Math.floor(x), side - 2);
    const at = (values) => {
      const line = (row) => values[row * side + left] * (1 - x + left) + values[row * side + left + 1] * (x - left);
      return line(top) * (1 - y + top) + line(top + 1) * (y - top);
    };
    return `${at(lon).toFixed(4)}, ${at(lat).toFixed(4)}`.replaceAll("-", "−");
  }

  function readout(found) {
    const period = data.periods[state.time].name, there = found.filter((value) => !Number.isNaN(value)).sort();
    if (state.shown === "change") {
      const since = data.periods[state.since].name;
      if (!there.length) return `No pixel has data in both ${since} and ${period}.`;
      return `From ${since} to ${period} the vectors turned by ${degreesOf(there[there.length >> 1]).toFixed(1)}° (median).`;
    }
    if (!there.length) return `No data at ${degrees(state.place)} in ${period}.`;
    const alike = (100 * there.filter((value) => value >= 0.9).length) / there.length;
    return `Place ${degrees(state.place)} (lon, lat). In ${period} ${alike.toFixed(1)}% of the pixels have a similarity of 0.9 or more.`;
  }

  // ---- what is shown

  const said = { colours: "as colours", similarity: "as similarity to a place", change: "as change since another period" };

  function show() {
    const period = data.periods[state.time], covered = state.shown !== "colours";
    picture.src = thumbs[state.time].querySelector("img").src;
    picture.alt = `${document.querySelector("h1").textContent}, ${period.name}, ${said[state.shown]}`;
    slider.value = state.time;
    slider.setAttribute("aria-valuetext", period.name + (period.extrapolated ? ", extrapolated" : ""));
    for (const id of ["name", "dates", "days", "nodata"]) $(id).textContent = period[id];
    for (const id of ["frames", "uncertainty"]) {
      $(id).textContent = period[id];
      $(id).parentElement.hidden = period[id] === null;
    }
    $("extrapolated").hidden = !period.extrapolated;
    for (const cell of document.querySelectorAll("[data-source]")) cell.textContent = period.observations[cell.dataset.source];
    thumbs.forEach((thumb, index) => thumb.setAttribute("aria-current", String(index === state.time)));
    choices.forEach((choice) => { choice.checked = choice.value === state.shown; });
    since.value = state.since;
    layer.hidden = !covered;
    picture.style.visibility = covered ? "hidden" : ""; // the copy may be a little smaller
    ring.toggleAttribute("hidden", state.shown !== "similarity");
    for (const name of Object.keys(said)) $(`about-${name}`).hidden = name !== state.shown;
    if (covered) {
      const found = cosines(state.time);
      draw(found);
      $("readout").textContent = readout(found);
    } else $("readout").textContent = "Click a place on the map to see what is like it.";
    $("before").disabled = state.time === 0;
    $("after").disabled = state.time === times - 1;
  }

  function go(time) {
    state.time = Math.max(0, Math.min(times - 1, time));
    show();
  }

  function choose(shown) {
    if (shown === "similarity" && !state.place) return pick(rows >> 1, columns >> 1);
    state.shown = shown;
    if (shown !== "colours") scale();
    show();
  }

  function pick(row, column) {
    const within = (value, size) => Math.max(0, Math.min(size - 1, value));
    state.place = { row: within(row, rows), column: within(column, columns) };
    const [left, top, width, height] = data.box;
    ring.style.left = `${100 * (left + ((state.place.column + 0.5) / columns) * width)}%`;
    ring.style.top = `${100 * (top + ((state.place.row + 0.5) / rows) * height)}%`;
    choose("similarity");
  }

  function play(wanted) {
    clearInterval(state.playing);
    state.playing = wanted ? setInterval(() => go((state.time + 1) % times), 900) : null;
    $("play").textContent = wanted ? "Pause" : "Play";
    $("play").setAttribute("aria-pressed", String(wanted));
  }

  // ---- what the reader does

  slider.addEventListener("input", () => { play(false); go(Number(slider.value)); });
  $("before").addEventListener("click", () => { play(false); go(state.time - 1); });
  $("after").addEventListener("click", () => { play(false); go(state.time + 1); });
  $("play").addEventListener("click", () => play(!state.playing));
  thumbs.forEach((thumb, index) => thumb.addEventListener("click", () => { play(false); go(index); }));
  choices.forEach((choice) => choice.addEventListener("change", () => choose(choice.value)));
  since.addEventListener("change", () => { state.since = Number(since.value); choose("change"); });

  frame.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the focus: the keys go on changing the period
  frame.addEventListener("click", (event) => {
    const box = frame.getBoundingClientRect();
    const [left, top, width, height] = data.box;
    const across = ((event.clientX - box.left) / box.width - left) / width;
    const down = ((event.clientY - box.top) / box.height - top) / height;
    pick(Math.floor(down * rows), Math.floor(across * columns));
  });

  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  frame.addEventListener("keydown", (event) => {
    if (event.key === "Escape") choose("colours");
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const [down, across] = moves[event.key], far = event.shiftKey ? 10 : 1;
    const from = state.place || { row: rows >> 1, column: columns >> 1 };
    pick(from.row + down * far, from.column + across * far);
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = { ArrowLeft: state.time - 1, ArrowRight: state.time + 1, Home: 0, End: times - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    play(false);
    go(to);
  });

  // ---- once

  $("map").style.maxWidth = `max(280px, ${(72 * Number(picture.getAttribute("width"))) / Number(picture.getAttribute("height"))}vh)`; // all of it is seen at once
  layer.width = columns;
  layer.height = rows;
  ["left", "top", "width", "height"].forEach((side, index) => { layer.style[side] = `${100 * data.box[index]}%`; });
  for (const [name, colours] of Object.entries(data.ramps)) {
    const ramp = new ImageData(256, 1);
    for (let shade = 0; shade < 256; shade++) ramp.data.set([...colours.slice(3 * shade, 3 * shade + 3), 255], 4 * shade);
    $(`ramp-${name}`).getContext("2d").putImageData(ramp, 0, 0);
  }
  if (data.metres) {
    const most = data.metres / 3, ten = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((step) => step * ten).find((step) => step <= most);
    $("bar").style.width = `${(100 * length) / data.metres}%`;
    $("length").textContent = length >= 1000 ? `${length / 1000} km` : `${length} m`;
    $("scale").hidden = false;
  }
  $("shown").disabled = false;
  show();
  if (data.start.place) pick(...data.start.place);
  if (data.start.between) {
    [state.since, state.time] = data.start.between;
    choose("change");
  }
})();
