"use strict";

const REFRESH_SECONDS = 10;

const color = (name) => {
  const probe = document.createElement("span"); // a browser resolves light-dark() only where it is used
  probe.className = `swatch ${name}`;
  document.body.append(probe);
  const resolved = getComputedStyle(probe).backgroundColor;
  probe.remove();
  return resolved;
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
  const histogram = JSON.parse(element.querySelector("script").textContent);
  const positions = histogram.bars.map((_, position) => position);
  const trace = (name, values, paint) => ({ type: "bar", name, x: positions, y: values, marker: { color: paint },
    customdata: histogram.bars, hovertemplate: "%{customdata}: %{y:.1%}" });
  const series = [trace("training", histogram.reference, color("then")), trace("now", histogram.now, color("now"))];
  const many = histogram.bars.length > 8;
  return [series, layout({ bargap: 0.15, bargroupgap: 0, margin: { t: 6, r: 6, b: many ? 8 : 24, l: 34 },
    xaxis: { tickvals: many ? [] : positions, ticktext: many ? [] : histogram.bars, tickangle: 0 }, yaxis: { tickformat: ".0%", nticks: 4 } })];
}

function traffic(key) {
  const data = JSON.parse(document.getElementById("traffic-data").textContent);
  const paints = [color("now"), getComputedStyle(document.querySelector("#traffic")).color];
  const line = (name, values, paint, dash) => ({ type: "scatter", mode: "lines+markers", name, x: data.times, y: values,
    line: { color: paint, dash, width: 2 }, marker: { size: 4 }, connectgaps: false });
  const series = data.series.flatMap((role, number) => key === "traffic"
    ? [{ ...line(role.name, role.requests, paints[number], "solid"), customdata: role.shares, hovertemplate: "%{y:.3~g} (%{customdata})" }]
    : [line(`${role.role}, p50`, role.p50, paints[number], "solid"), line(`${role.role}, p99`, role.p99, paints[number], "dot")]);
  return [series, layout({ showlegend: data.series.length > 1, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, xaxis: { type: "date", nticks: 5 } })];
}

function plot(element) {
  const kind = element.dataset.chart;
  const [series, shape] = kind === "bars" ? bars(element) : traffic(kind);
  window.Plotly.react(element, series, shape, { displayModeBar: false, responsive: true });
}

/* Charts are drawn shortly before they scroll into view, as a model may have hundreds of features. */
const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((candidate) => candidate.isIntersecting)) {
    nearby.unobserve(entry.target);
    plot(entry.target);
  }
}, { rootMargin: "800px" });

function draw() {
  if (!window.Plotly) return;
  for (const element of document.querySelectorAll("[data-chart]")) nearby.observe(element);
}

/* Return an answer as lines of text: the prediction, or what is wrong with the request. */
function describe(status, body) {
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
      /* some answers are not JSON */
    }
    return { ok: answer.ok, status: answer.status, text, body };
  } catch {
    return { ok: false, status: 0, text: "", body: { detail: "The API cannot be reached." } };
  }
}

function show(output, lines, ok) {
  output.replaceChildren();
  const note = document.createElement("div");
  note.className = ok ? "note good" : "note bad";
  lines.forEach((line, number) => {
    const paragraph = document.createElement("p");
    const strong = document.createElement(number ? "span" : "b");
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
  const answer = await ask(form.getAttribute("data-try"), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(row) });
  show(form.querySelector("output"), describe(answer.status, answer.body), answer.ok);
}

async function send(form) {
  const body = form.elements.body?.value;
  const token = form.elements.token?.value;
  const headers = { ...(body ? { "Content-Type": "application/json" } : {}), ...(token ? { "X-Admin-Token": token } : {}) };
  const answer = await ask(form.elements.path.value, { method: form.getAttribute("data-method"), headers, body: body || undefined });
  const shown = answer.body ? JSON.stringify(answer.body, null, 2) : answer.text;
  const output = form.querySelector("output");
  show(output, [answer.status ? `Status ${answer.status}` : "No answer"], answer.ok);
  const text = document.createElement("pre");
  text.tabIndex = 0;
  text.textContent = shown.length > 20000 ? `${shown.slice(0, 20000)}\n…` : shown;
  output.append(text);
}

const address = () => window.location.href.replace(/([?&])done=\w+&?/, "$1").replace(/#.*/, "");
let busy = false;

/* Replace the parts that change. A part that is in use stays, and then the time at the foot of the page stays too. */
async function refresh() {
  if (busy || document.hidden || !document.querySelector("[data-live]")) return;
  busy = true;
  try {
    const answer = await fetch(address());
    if (!answer.ok) throw new Error(answer.statusText);
    update(await answer.text());
  } catch {
    document.querySelector("footer p").textContent = "The API cannot be reached; this page may be out of date.";
  } finally {
    busy = false;
  }
}

function update(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const names = (page) => [...page.querySelectorAll("[data-live]")].map((part) => part.dataset.live).join();
  if (names(fresh) !== names(document)) {
    const link = document.createElement("a");
    link.href = address();
    link.textContent = "Refresh";
    document.querySelector("footer p").replaceChildren("The served versions have changed since this page was loaded. ", link);
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
  if (!navigator.clipboard) return; // browsers have it on localhost and over https only
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
  const form = event.target; // a field's name may hide a property of the form, so attributes are read instead
  if (form.hasAttribute("data-try") || form.hasAttribute("data-method")) {
    event.preventDefault();
    (form.hasAttribute("data-try") ? predict : send)(form);
  } else {
    window.setTimeout(() => form.querySelectorAll("button").forEach((button) => { button.disabled = true; })); // sent only once
  }
});
document.addEventListener("DOMContentLoaded", () => {
  offerCopies();
  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.setInterval(refresh, 1000 * REFRESH_SECONDS);
});
