"use strict";

const REFRESH_SECONDS = 10;

const color = (name) => {
  const probe = document.createElement("span"); // light-dark() is resolved only where it is used
  probe.className = `swatch ${name}`;
  document.body.append(probe);
  const found = getComputedStyle(probe).backgroundColor;
  probe.remove();
  return found;
};

function layout(more) {
  const ink = getComputedStyle(document.body).color;
  const grid = { gridcolor: "rgba(128, 128, 128, .25)", zerolinecolor: "rgba(128, 128, 128, .4)", fixedrange: true };
  return {
    margin: { t: 6, r: 6, b: 34, l: 40 },
    font: { family: "system-ui, sans-serif", size: 11, color: ink },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: getComputedStyle(document.querySelector("section")).backgroundColor, font: { color: ink } },
    dragmode: false,
    ...more,
    xaxis: { ...grid, ...more.xaxis },
    yaxis: { ...grid, rangemode: "tozero", ...more.yaxis },
  };
}

function bars(element) {
  const found = JSON.parse(element.querySelector("script").textContent);
  const places = found.bars.map((_, place) => place);
  const side = (name, values, paint) => ({ type: "bar", name, x: places, y: values, marker: { color: paint },
    customdata: found.bars, hovertemplate: "%{customdata}: %{y:.1%}" });
  const series = [side("training", found.reference, color("then")), side("now", found.now, color("now"))];
  const numbers = found.bars.length > 8;
  return [series, layout({ bargap: 0.15, bargroupgap: 0, margin: { t: 6, r: 6, b: numbers ? 8 : 24, l: 34 },
    xaxis: { tickvals: numbers ? [] : places, ticktext: numbers ? [] : found.bars, tickangle: 0 }, yaxis: { tickformat: ".0%", nticks: 4 } })];
}

function traffic(key) {
  const found = JSON.parse(document.getElementById("traffic-data").textContent);
  const paints = [color("now"), getComputedStyle(document.querySelector("#traffic")).color];
  const line = (name, values, paint, dash) => ({ type: "scatter", mode: "lines+markers", name, x: found.times, y: values,
    line: { color: paint, dash, width: 2 }, marker: { size: 4 }, connectgaps: false });
  const series = found.series.flatMap((one, place) => key === "traffic"
    ? [{ ...line(one.name, one.requests, paints[place], "solid"), customdata: one.shares, hovertemplate: "%{y:.3~g} (%{customdata})" }]
    : [line(`${one.role}, half`, one.p50, paints[place], "solid"), line(`${one.role}, 99%`, one.p99, paints[place], "dot")]);
  return [series, layout({ showlegend: found.series.length > 1, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, xaxis: { type: "date", nticks: 5 } })];
}

function plot(element) {
  const kind = element.dataset.chart;
  const [series, shape] = kind === "bars" ? bars(element) : traffic(kind);
  window.Plotly.react(element, series, shape, { displayModeBar: false, responsive: true });
}

/* Charts are drawn when they are about to be seen: a model may have hundreds of features. */
const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((one) => one.isIntersecting)) {
    nearby.unobserve(entry.target);
    plot(entry.target);
  }
}, { rootMargin: "800px" });

function draw() {
  if (!window.Plotly) return;
  for (const element of document.querySelectorAll("[data-chart]")) nearby.observe(element);
}

/* The answer to a request, as people read it: of a prediction what was predicted, else what is wrong. */
function told(status, body) {
  if (body && body.prediction) {
    const { prediction } = body;
    const lines = [`${prediction.class ?? prediction.value}`];
    for (const [name, share] of Object.entries(prediction.probabilities ?? {})) lines.push(`${name}: ${(100 * share).toFixed(1)}%`);
    if (body.model) lines.push(`by version ${body.model.version} (${body.model.role})`);
    for (const warning of body.warnings ?? []) lines.push(`${warning.field} ${warning.message}`);
    return lines;
  }
  if (body && body.detail) return [body.detail, ...(body.errors ?? []).map((fault) => `${fault.field} ${fault.message}`)];
  return [`The API answered ${status}.`];
}

async function ask(address, options) {
  try {
    const answer = await fetch(address, options);
    const text = await answer.text();
    let body = null;
    try {
      body = JSON.parse(text);
    } catch {
      /* some answers are no JSON */
    }
    return { ok: answer.ok, status: answer.status, text, body };
  } catch {
    return { ok: false, status: 0, text: "", body: { detail: "The API cannot be reached." } };
  }
}

function say(output, lines, ok) {
  output.replaceChildren();
  const note = document.createElement("div");
  note.className = ok ? "note good" : "note bad";
  lines.forEach((line, place) => {
    const paragraph = document.createElement("p");
    const strong = document.createElement(place ? "span" : "b");
    strong.textContent = line;
    paragraph.append(strong);
    note.append(paragraph);
  });
  output.append(note);
}

async function predict(form) {
  const row = {};
  for (const field of form.querySelectorAll("[data-kind]")) {
    const number = field.dataset.kind === "number";
    const missing = number ? field.value === "" : "missing" in field.selectedOptions[0].dataset;
    row[field.name] = missing ? null : number ? Number(field.value) : field.value;
  }
  const found = await ask(form.getAttribute("data-try"), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(row) });
  say(form.querySelector("output"), told(found.status, found.body), found.ok);
}

async function send(form) {
  const body = form.elements.body?.value;
  const token = form.elements.token?.value;
  const headers = { ...(body ? { "Content-Type": "application/json" } : {}), ...(token ? { "X-Admin-Token": token } : {}) };
  const found = await ask(form.elements.path.value, { method: form.getAttribute("data-method"), headers, body: body || undefined });
  const shown = found.body ? JSON.stringify(found.body, null, 2) : found.text;
  const output = form.querySelector("output");
  say(output, [found.status ? `Status ${found.status}` : "No answer"], found.ok);
  const text = document.createElement("pre");
  text.tabIndex = 0;
  text.textContent = shown.length > 20000 ? `${shown.slice(0, 20000)}\n…` : shown;
  output.append(text);
}

const address = () => window.location.href.replace(/([?&])done=\w+&?/, "$1").replace(/#.*/, "");
let busy = false;

/* Put what changed since in its place; parts whose controls somebody is at are left alone, and the time says so. */
async function refresh() {
  if (busy || document.hidden || !document.querySelector("[data-live]")) return;
  busy = true;
  try {
    const answer = await fetch(address());
    if (!answer.ok) throw new Error(answer.statusText);
    put(await answer.text());
  } catch {
    document.querySelector("footer p").textContent = "The API cannot be asked; what is shown may be old.";
  } finally {
    busy = false;
  }
}

function put(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const names = (page) => [...page.querySelectorAll("[data-live]")].map((part) => part.dataset.live).join();
  if (names(fresh) !== names(document)) {
    const link = document.createElement("a");
    link.href = address();
    link.textContent = "Refresh";
    document.querySelector("footer p").replaceChildren("What is served has changed since this page was made. ", link);
    return;
  }
  const held = document.activeElement.matches("a, button, summary") ? document.activeElement : null;
  let kept = false;
  for (const part of document.querySelectorAll("[data-live]")) {
    if (part.contains(held) || part.querySelector("details[open]")) {
      kept = true;
      continue;
    }
    for (const chart of part.querySelectorAll(".js-plotly-plot")) window.Plotly.purge(chart);
    part.replaceWith(fresh.querySelector(`[data-live="${part.dataset.live}"]`));
  }
  document.querySelector("h1").replaceWith(fresh.querySelector("h1"));
  if (!kept && !document.querySelector("footer").contains(held)) {
    document.querySelector("footer").replaceWith(fresh.querySelector("footer"));
  }
  draw();
}

function offerCopies() {
  if (!navigator.clipboard) return; // which browsers have on this machine and over https alone
  for (const text of document.querySelectorAll("pre.copy")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = "Copy";
    const line = text.textContent;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(line);
      button.textContent = "Copied";
    });
    text.append(button);
  }
}

document.addEventListener("submit", (event) => {
  const form = event.target; // whose fields may have any names, so that its properties may be fields
  if (form.hasAttribute("data-try") || form.hasAttribute("data-method")) {
    event.preventDefault();
    (form.hasAttribute("data-try") ? predict : send)(form);
  } else {
    window.setTimeout(() => form.querySelectorAll("button").forEach((button) => { button.disabled = true; })); // once
  }
});
document.addEventListener("DOMContentLoaded", () => {
  offerCopies();
  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.setInterval(refresh, 1000 * REFRESH_SECONDS);
});
