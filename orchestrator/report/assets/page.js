"use strict";
// Draws the charts, keeps what is pointed at the same in all of them, and names the model that the
// budget takes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const options = {
    mode: "vega-lite",
    renderer: "svg",
    actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
    downloadFileName: data.study,
    config: { background: null, view: { stroke: null }, font: "system-ui, sans-serif" },
  };
  const views = [];
  let picked = null;

  function pick(trial) {
    if (trial === picked) return;
    picked = trial;
    for (const view of views) view.signal("picked", trial).runAsync();
    for (const row of document.querySelectorAll("tr[data-trial]"))
      row.classList.toggle("lit", row.dataset.trial === trial);
  }

  function trialOf(item) {
    const trial = item && item.datum ? item.datum.trial : null;
    return typeof trial === "string" ? trial : null;
  }

  // As select=max_quality: the largest mean less spread within the budget; the first of equals.
  function taken(models, cost, budget) {
    let best = null;
    for (const model of models) {
      const sure = data.sign * model.quality - model.spread;
      if (model.ratios[cost] <= budget && (best === null || sure > best.sure))
        best = { sure, model };
    }
    return best && best.model;
  }

  function sayChoice(line, models, cost, budget) {
    const most = budget / 100; // the slider is in percent
    const model = taken(models, cost, most);
    const within = `within ${budget} % of the dense model's ${data.costs[cost].words}`;
    if (model === null) {
      line.textContent = `No model of the front is ${within}.`;
      return;
    }
    pick(model.trial);
    const command = document.createElement("code");
    command.textContent =
      `job=export study.name=${data.study} select=max_quality ${data.costs[cost].limit}=${most}`;
    const left = (100 * model.ratios[cost]).toFixed(1);
    line.replaceChildren(
      `The best model ${within} is ${model.words}: ${data.quality} ` +
        `${model.quality.toFixed(4)} ± ${model.spread.toFixed(4)}, ${left} % left. ` +
        "To take it, give the command of the search with ",
      command,
    );
  }

  const line = document.getElementById("choice");
  const models = data.charts.front.data.values.filter(
    (record) => record.what === "front" && record.quality !== null && record.spread !== null,
  );

  function followBudget(view) {
    const say = () => sayChoice(line, models, view.signal("cost"), view.signal("budget"));
    view.addSignalListener("cost", say);
    view.addSignalListener("budget", say);
  }

  function param(name) {
    return data.charts.front.params.find((param) => param.name === name).value;
  }

  for (const row of document.querySelectorAll("tr[data-trial]"))
    for (const kind of ["mouseenter", "focus", "click"])
      row.addEventListener(kind, () => pick(row.dataset.trial));

  if (line !== null) sayChoice(line, models, param("cost"), param("budget"));

  const drawn = Object.entries(data.charts).map(async ([name, spec]) => {
    // each chart begins with the model that the budget takes
    spec.params.find((param) => param.name === "picked").value = picked;
    const { view } = await vegaEmbed(`#chart-${name}`, spec, options);
    views.push(view);
    view.addEventListener("mouseover", (event, item) => {
      const trial = trialOf(item);
      if (trial !== null) pick(trial);
    });
    view.addEventListener("click", (event, item) => pick(trialOf(item)));
    if (name === "front" && line !== null) followBudget(view);
  });
  Promise.all(drawn).then(() => document.body.setAttribute("data-drawn", "yes"));
})();
