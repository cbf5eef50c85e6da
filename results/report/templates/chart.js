// Draws the front with Plotly in the colours of the page, and redraws it when they or the width change.
(function () {
  "use strict";
  const element = document.getElementById("chart");
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 720px)");
  const timeline = document.querySelector(".timeline");
  const last = data.front.concat(data.others).reduce((most, point) => Math.max(most, point.number + 1), 0);
  let [everything, upto] = [false, last];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Plotly interprets tags in labels; names from a study must not become tags.
  const escape = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const column = (points, key) => points.map((point) => point[key]);

  const [xAxis, yAxis] = [data.axes.x, data.axes.y];
  const shown = (value) => value.toFixed(yAxis.digits) + yAxis.unit;
  const grouped = (count) => count.toLocaleString("en");

  function describe(point) {
    const lines = [`<b>${shown(point.y)}</b> ${yAxis.name}`];
    if (point.low !== null) lines.push(`${shown(point.low)} to ${shown(point.high)} (95 %, ${grouped(point.images)} images)`);
    if (point.search) lines.push(`${shown(point.search.y)} in the search (${grouped(point.search.images)} images)`);
    if (point.unconfirmed) lines.push("not confirmed");
    lines.push(`${point.share.toFixed(3)} of dense, ${escape(point.flops)}FLOPs`);
    if (point.before !== undefined) lines.push(`${shown(point.before)} before fine-tuning; both on ${escape(point.on)}${escape(point.spread)}`);
    if (point.agreement !== null) lines.push(`${point.agreement.toFixed(1)} % agreement with dense`);
    if (point.latency_ratio !== null) lines.push(`${point.latency_ratio.toFixed(3)} of the dense latency`);
    if (point.latency !== null) lines.push(`${point.latency.toPrecision(3)} ms per image`);
    return lines.concat(point.schedule.map(escape)).join("<br>");
  }

  function describeDense(dense) {
    const lines = [`<b>${shown(dense.y)}</b> ${yAxis.name}`];
    if (dense.search) lines.push(`${shown(dense.search.y)} in the search (${grouped(dense.search.images)} images)`);
    return lines.concat(`dense, ${escape(dense.flops)}FLOPs`).join("<br>");
  }

  // Without WebGL, many points are drawn as elements like few: slowly, but completely.
  const webgl = data.many && Boolean(document.createElement("canvas").getContext("webgl"));

  // The front of the points with a lower number, cheapest first.
  function frontUpTo(number) {
    const then = data.front.concat(data.others).filter((point) => point.number < number);
    const better = (a, b) => (yAxis.rising ? a > b : a < b);
    then.sort((one, other) => one.x - other.x || (better(one.y, other.y) ? -1 : 1));
    let best = yAxis.rising ? -Infinity : Infinity;
    const found = new Set(then.filter((point) => better(point.y, best) && ((best = point.y), true)));
    return { front: [...found], others: then.filter((point) => !found.has(point)) };
  }

  function markers(name, points, marker, extra) {
    return Object.assign({
      name, type: webgl && name === "evaluations" ? "scattergl" : "scatter", mode: "markers", x: column(points, "x"), y: column(points, "y"), marker,
      text: points.map(describe), customdata: column(points, "hash"), hovertemplate: "%{text}<extra></extra>",
    }, extra);
  }

  function traces() {
    const found = [];
    const early = upto < last;
    const { front, others } = early ? frontUpTo(upto) : data;
    if (others.length) {
      found.push(markers("evaluations", others, { color: colour("faint"), size: 6, opacity: 0.75 }));
    }
    const marker = { color: colour("accent"), size: narrow.matches ? 8 : 9 };
    found.push(markers(early ? `front after ${grouped(upto)}` : data.name, front, marker, {
      mode: data.line ? "lines+markers" : "markers", line: { shape: "hv", color: colour("accent"), width: 1.5 },
      error_y: {
        type: "data", symmetric: false, thickness: 1, width: 0, color: colour("accent"),
        array: front.map((point) => (point.high === null ? 0 : point.high - point.y)),
        arrayminus: front.map((point) => (point.low === null ? 0 : point.y - point.low)),
      },
    }));
    const unconfirmed = front.filter((point) => point.unconfirmed);
    if (unconfirmed.length) {
      const hollow = { color: colour("surface"), size: marker.size, line: { color: colour("accent"), width: 1.5 } };
      found.push(markers("not confirmed", unconfirmed, hollow));
    }
    if (data.tuned.length && !early) {
      found.push(markers("fine-tuned", data.tuned, { color: colour("warm"), size: 9, symbol: "diamond" }));
    }
    found.push({
      name: "dense model", type: "scatter", mode: "markers", x: [data.dense.x], y: [data.dense.y],
      marker: { color: colour("ink"), size: 13, symbol: "star" },
      text: [describeDense(data.dense)], hovertemplate: "%{text}<extra></extra>",
    });
    return found;
  }

  function layout() {
    const axis = {
      gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true,
      tickfont: { color: colour("muted"), size: 12 }, title: { font: { color: colour("muted"), size: 13 }, standoff: 12 },
    };
    const budget = data.budget ? [data.budget] : [];
    const xs = column(data.front.concat(data.others, budget), "x").concat([data.dense.x]);
    const [left, right] = [Math.min(...xs), Math.max(...xs)];
    const pad = 0.05 * (right - left) + 0.01;
    const ys = column(data.front.concat(data.others), "y").concat(data.view);
    const [low, high] = [Math.min(...ys), Math.max(...ys)];
    const all = [low - 0.04 * (high - low), high + 0.03 * (high - low)];
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 13 },
      margin: narrow.matches ? { l: 8, r: 12, t: 8, b: 8 } : { l: 16, r: 20, t: 48, b: 16 },
      dragmode: narrow.matches ? false : "zoom",
      hovermode: "closest", hoverdistance: 16,
      hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("faint"), align: "left", font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 13 } },
      legend: { orientation: "h", x: 0, y: 1.03, xanchor: "left", yanchor: "bottom", font: { size: 12, color: colour("muted") } },
      xaxis: { ...axis, title: { ...axis.title, text: escape(xAxis.title) }, range: [left - pad, right + pad], tickformat: ".2~f" },
      yaxis: { ...axis, title: { ...axis.title, text: narrow.matches ? "" : escape(yAxis.title) }, range: everything ? all : data.view, ticksuffix: narrow.matches ? yAxis.unit : "" },
      shapes: budget.map(({ x }) => (
        { type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: colour("muted"), width: 1, dash: "dash" } }
      )),
      annotations: budget.map(({ x, label }) => ({ // and from each score before fine-tuning an arrow to the one after
        x, yref: "paper", y: 0, text: escape(label), showarrow: false, textangle: -90,
        xanchor: "right", yanchor: "bottom", xshift: -2, yshift: 6, font: { color: colour("muted"), size: 12 },
      })).concat(upto < last ? [] : data.tuned.map((point) => ({
        x: point.x, y: point.y, ax: point.x, ay: point.before, xref: "x", yref: "y", axref: "x", ayref: "y",
        text: "", showarrow: true, arrowhead: 2, arrowsize: 1.1, arrowwidth: 1.4, standoff: 5,
        arrowcolor: colour("warm"),
      }))),
    };
  }

  function draw() {
    Plotly.react(element, traces(), layout(), { responsive: true, displaylogo: false, displayModeBar: false });
  }

  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => {
      everything = button.dataset.view === "all";
      for (const other of document.querySelectorAll("[data-view]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      draw();
    });
  }
  if (timeline && last > 1) {
    const [slider, output] = [timeline.querySelector("input"), timeline.querySelector("output")];
    const showCount = () => { output.value = upto < last ? `${grouped(upto)} of ${grouped(last)} evaluations` : `all ${grouped(last)} evaluations`; };
    let waiting = false;
    slider.max = String(last);
    slider.value = String(last);
    slider.addEventListener("input", () => {
      upto = Number(slider.value);
      showCount();
      if (waiting) return; // at most one redraw a frame
      waiting = true;
      requestAnimationFrame(() => { waiting = false; draw(); });
    });
    showCount();
    timeline.hidden = false;
  }
  // A click on a point scrolls to its row: in the table of the front, or in the table of all evaluations.
  function goToRow(hash) {
    const row = document.getElementById(`row-${hash}`);
    if (!row) {
      document.dispatchEvent(new CustomEvent("evaluation", { detail: hash }));
      return;
    }
    document.querySelectorAll("tr.found").forEach((other) => other.classList.remove("found"));
    row.classList.add("found");
    row.scrollIntoView({ block: "center" });
  }

  element.on("plotly_click", (event) => goToRow(event.points[0].customdata));

  // By keyboard: the arrow keys move along the visible points of the front, Enter does what a click does.
  let at = null;
  element.addEventListener("keydown", (event) => {
    const curve = element.data.findIndex((trace) => trace.error_y);
    const trace = element.data[curve];
    const within = (axis, value) => value >= Math.min(...axis.range) && value <= Math.max(...axis.range);
    const inView = trace.x.flatMap((x, i) => (within(element.layout.xaxis, x) && within(element.layout.yaxis, trace.y[i]) ? [i] : []));
    if (!inView.length) return;
    const now = inView.indexOf(at); // -1 at first
    const next = {
      ArrowRight: Math.min(now + 1, inView.length - 1), ArrowLeft: Math.max(now < 0 ? inView.length - 1 : now - 1, 0),
      Home: 0, End: inView.length - 1,
    }[event.key];
    if (next !== undefined) {
      at = inView[next];
      Plotly.Fx.hover(element, [{ curveNumber: curve, pointNumber: at }]);
      element.setAttribute("aria-valuenow", String(at + 1));
      element.setAttribute("aria-valuetext", trace.text[at].replace(/<br>/g, ", ").replace(/<[^>]*>/g, ""));
    } else if (event.key === "Enter" && now >= 0) {
      goToRow(trace.customdata[at]);
    } else if (event.key === "Escape") {
      Plotly.Fx.unhover(element);
      at = null;
      element.setAttribute("aria-valuenow", "0");
    } else {
      return;
    }
    event.preventDefault();
  });
})();
