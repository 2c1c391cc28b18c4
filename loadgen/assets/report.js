// Draws the charts of a report. All text comes out of the page's own data and reaches the page as text, never as markup.
(() => {
  "use strict";
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const SCREEN = 260;
  const PAPER = { width: 640, height: 200 };
  const DECADES_MAX = 5;
  const plots = [];

  const isPaper = () => root.classList.contains("paper");
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const digits = (value, n) =>
    (Number.isInteger(value) ? value : Number(value.toPrecision(n))).toLocaleString("en-US", { maximumFractionDigits: 6 });

  // One value with its unit, as short as it can be said.
  function say(value, unit, n) {
    if (value == null) return "–";
    const scaled = (steps) => {
      const [size, name] = steps.find(([size]) => Math.abs(value) >= size) ?? steps[steps.length - 1];
      return digits(value / size, n) + " " + name;
    };
    switch (unit) {
      case "ms": return value === 0 ? "0" : scaled([[60000, "min"], [1000, "s"], [1, "ms"], [0.001, "µs"]]);
      case "bytes": return value === 0 ? "0" : scaled([[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]);
      case "s": return value >= 600 ? digits(value / 60, n) + " min" : digits(value, n) + " s";
      case "%": return digits(value, n) + " %";
      default: {
        const [size, name] = [[1e6, " M"], [1e4, " k"], [0, ""]].find(([size]) => Math.abs(value) >= size);
        const short = digits(value / (size === 1e4 ? 1e3 : size || 1), n) + name;
        return unit === "/s" || !unit ? short + unit : short + " " + unit;
      }
    }
  }

  // 1, 10, 100 stand for 0, 90, 99 %: each step to the right is a tenth of what is left.
  const percentile = (x, n) => (x <= 1 ? "0 %" : Number((100 - 100 / x).toPrecision(n ?? 8)) + " %");

  // The powers of ten of a logarithmic axis.
  function decades(u, axis, min, max) {
    const splits = [];
    for (let power = Math.ceil(Math.log10(min) - 1e-9); 10 ** power <= max * 1.0001; power++) splits.push(10 ** power);
    return splits;
  }

  function axisX(chart) {
    switch (chart.x) {
      case "percentile":
        return {
          scale: { time: false, distr: 3, range: () => [1, chart.xs[chart.xs.length - 1] * 1.01] },
          splits: decades,
          tick: (x) => percentile(x),
          value: (x) => percentile(x, 7),
        };
      case "category":
        return {
          scale: { time: false, range: (u, min, max) => [min - 0.4, max + 0.4] },
          splits: () => chart.xs,
          tick: (x) => chart.names[x] ?? "",
          value: (x) => chart.names[x] ?? "",
        };
      default:
        return { scale: { time: false }, tick: (x) => say(x, chart.x, 6), value: (x) => say(x, chart.x, 6) };
    }
  }

  function scaleY(chart) {
    const values = chart.series.flatMap((series) => series.values).filter((value) => value != null);
    if (chart.log) {
      const positive = values.filter((value) => value > 0);
      const top = Math.ceil(Math.log10(Math.max(...positive) * 1.0001));
      // What took next to no time is below the chart: nobody asks how far.
      const bottom = Math.max(Math.floor(Math.log10(Math.min(...positive))), top - DECADES_MAX);
      return { distr: 3, range: () => [10 ** bottom, 10 ** top] };
    }
    const high = values.reduce((a, b) => Math.max(a, b), 0);
    return { range: () => [0, high > 0 ? high * 1.08 : 1] };
  }

  function draw(figure, chart) {
    const at = figure.querySelector(".plot");
    const ink = colour("--ink"), soft = colour("--soft"), line = colour("--line");
    const width = () => (isPaper() ? PAPER.width : Math.floor(at.clientWidth));
    const x = axisX(chart);
    const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 5 }, font: "12px system-ui, sans-serif" };
    const points = chart.xs.length < 12 || chart.x === "category";
    const series = chart.series.map((series) => ({
      label: series.label,
      class: series.hidden ? "edge" : undefined,
      stroke: series.hidden ? "transparent" : colour("--c" + (1 + (series.colour % 6))),
      width: series.hidden ? 0 : 1.75,
      dash: series.dashed ? [5, 4] : undefined,
      points: { show: points && !series.hidden, size: 5 },
      value: (u, value) => (value == null ? "" : say(value, chart.unit, 4)),
      spanGaps: true,
    }));
    const bands = (chart.bands ?? []).map(([upper, lower, tint]) => ({
      series: [upper + 1, lower + 1],
      fill: colour("--c" + (1 + (tint % 6))) + "33",
    }));
    const options = {
      width: width(),
      height: isPaper() ? PAPER.height : SCREEN,
      pxAlign: 1,
      cursor: {
        y: false,
        // Charts over time point at the same moment.
        sync: chart.x === "s" ? { key: "time", setSeries: false } : undefined,
        drag: { x: chart.x !== "category", y: false },
      },
      legend: { show: true, live: true, markers: { width: 0, fill: (u, at) => u.series[at].stroke(u, at) } },
      padding: [10, 14, 0, 0],
      scales: { x: x.scale, y: scaleY(chart) },
      axes: [
        {
          ...axis,
          splits: x.splits,
          filter: x.splits ? (u, splits) => splits : undefined,
          values: (u, splits) => splits.map(x.tick),
          space: 64,
          size: 34,
        },
        {
          ...axis,
          splits: chart.log ? decades : undefined,
          filter: chart.log ? (u, splits) => splits : undefined,
          values: (u, splits) => splits.map((value) => say(value, chart.unit, 3)),
          size: 66,
        },
      ],
      series: [{ label: chart.xLabel, value: (u, value) => (value == null ? "" : x.value(value)) }, ...series],
      bands,
    };
    at.replaceChildren();
    const plot = new uPlot(options, [chart.xs, ...chart.series.map((series) => series.values)], at);
    plot.root.style.color = ink;
    plots.push({ plot, at, width });
  }

  function drawAll() {
    for (const { plot } of plots.splice(0)) plot.destroy();
    for (const chart of charts) draw(document.getElementById(chart.id), chart);
  }

  drawAll();
  new ResizeObserver(() => {
    for (const { plot, width } of plots) {
      const wanted = width();
      if (wanted > 0 && wanted !== plot.width) plot.setSize({ width: wanted, height: plot.height });
    }
  }).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  // Paper is white, as wide as paper is, and shows what was folded.
  let folded = [];
  addEventListener("beforeprint", () => {
    root.classList.add("paper");
    folded = [...document.querySelectorAll("details.printed:not([open])")];
    for (const details of folded) details.open = true;
    drawAll();
  });
  addEventListener("afterprint", () => {
    root.classList.remove("paper");
    for (const details of folded) details.open = false;
    drawAll();
  });
})();
