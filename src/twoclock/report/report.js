"use strict";
// Draws the figures in the colours of the page, and filters the ledger. Nothing is loaded, nothing is sent.
(function () {
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const plots = Array.from(document.querySelectorAll(".plot"));

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // The page knows whether it is light or dark; the figures come without colours for text and lines.
  function themed(layout) {
    const look = Object.assign({}, layout, {
      autosize: true,
      dragmode: touch ? false : "zoom", // a finger on a plot scrolls the page
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: Object.assign({}, layout.hoverlabel, {
        bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink") },
      }),
    });
    for (const key of Object.keys(look)) {
      if (/^[xy]axis\d*$/.test(key)) {
        look[key] = Object.assign({}, look[key], {
          gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"), zeroline: false,
          tickfont: { color: colour("--soft"), size: 11 },
        });
      }
    }
    return look;
  }

  const options = {
    responsive: true, displaylogo: false, displayModeBar: false, showTips: false, scrollZoom: false,
  };

  function draw(plot) {
    const figure = JSON.parse(plot.querySelector("script").textContent);
    for (const trace of figure.data) {
      if (trace.type === "bar" && trace.error_y) { trace.error_y.color = colour("--ink"); }
    }
    return Plotly.react(plot.querySelector(".canvas"), figure.data, themed(figure.layout), options);
  }

  function drawAll() { plots.forEach(draw); }
  drawAll();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  const form = document.querySelector(".filter");
  if (!form) { return; }
  const rows = Array.from(document.querySelectorAll(".ledger tbody tr"));
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const search = form.querySelector("input");
  const choices = Array.from(form.querySelectorAll("select"));
  const output = form.querySelector("output");

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const fits = choices.every((choice) => !choice.value || row.dataset[choice.dataset.by] === choice.value)
        && words.every((word) => texts[i].includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    output.textContent = shown + " of " + rows.length + " entries";
  }

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
