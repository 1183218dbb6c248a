"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const each = (selector, act) => document.querySelectorAll(selector).forEach(act);

  each(".script-only", (element) => { element.hidden = false; });

  // Copying. In a sandboxed frame the clipboard API is refused, so the text is selected first.
  each("[data-copy]", (button) => {
    button.hidden = false;
    button.addEventListener("click", () => {
      const range = document.createRange();
      range.selectNodeContents(byId(button.dataset.copy));
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      let copied = false;
      try { copied = document.execCommand("copy"); } catch { copied = false; }
      document.querySelector(".said").textContent = copied ? "Copied." : "Selected: press Ctrl or ⌘ and C.";
    });
  });

  // Sorting.
  const cellValue = (row, column, kind) => {
    const text = row.cells[column].textContent.trim();
    if (kind === "text") return text.toLowerCase();
    const value = parseFloat(text.replace(/[,%\s]/g, "").replace("−", "-"));
    return Number.isNaN(value) ? -Infinity : value;
  };
  each("table.sortable th[data-sort]", (head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      const body = head.closest("table").tBodies[0];
      const { cellIndex, dataset } = head;
      const keyed = [...body.rows].map((row) => [cellValue(row, cellIndex, dataset.sort), row]);
      keyed.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (ascending ? 1 : -1));
      head.parentElement.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      body.append(...keyed.map(([, row]) => row));
    });
  });

  // Paper has no folds.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open]):not(.screen-only)")];
    folded.forEach((element) => { element.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((element) => { element.open = false; }));
  // A link into a folded section opens it.
  const unfold = () => {
    const target = location.hash.length > 1 ? byId(location.hash.slice(1)) : null;
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", unfold);
  each('a[href="#rules"]', (link) => link.addEventListener("click", () => { byId("rules").open = true; }));

  const data = byId("map-data");
  if (data) embeddingMap(JSON.parse(data.textContent));

  function embeddingMap(points) {
    const plot = byId("map-plot");
    const context = plot.getContext("2d");
    const thumbnail = byId("map-thumbnail").getContext("2d");
    const atlas = byId("map-atlas");
    const count = points.x.length;
    const roles = ["holdout", "training", "suspect"];
    const all = Array.from({ length: count }, (_, i) => i);
    // Suspects are drawn last and found first.
    const order = [...all].sort((a, b) => points.role[a] - points.role[b] || a - b);
    const suspects = all.filter((i) => points.role[i] === 2);
    const whole = { x: 5000, y: 5000, zoom: 1 };
    let at = { ...whole };
    let chosen = -1;
    let onlyClass = "";
    let printing = false;

    const nameOf = (i) => points.names[points.label[i]] ?? String(points.label[i]);
    const visible = (i) => onlyClass === "" || String(points.label[i]) === onlyClass;
    const dark = () => !printing && matchMedia("(prefers-color-scheme: dark)").matches;

    function place(i) {
      const scale = Math.min(plot.width, plot.height) / 10600 * at.zoom;
      return [plot.width / 2 + (points.x[i] - at.x) * scale, plot.height / 2 + (points.y[i] - at.y) * scale];
    }

    function draw() {
      const ratio = plot.width / 900;
      const night = dark();
      context.clearRect(0, 0, plot.width, plot.height);
      const radius = 2.4 * ratio * Math.min(2, Math.sqrt(at.zoom));
      for (const i of order) {
        const [x, y] = place(i);
        if (x < -20 || y < -20 || x > plot.width + 20 || y > plot.height + 20) continue;
        const shown = visible(i);
        const hue = (points.label[i] * 137.508) % 360;
        const colour = `hsl(${hue} ${night ? "60% 68%" : "62% 38%"})`;
        context.globalAlpha = shown ? 0.85 : 0.08;
        context.beginPath();
        if (points.role[i] === 2) {
          const r = radius * 2.3;
          context.moveTo(x, y - r); context.lineTo(x + r, y); context.lineTo(x, y + r); context.lineTo(x - r, y);
          context.closePath();
          context.globalAlpha = shown ? 1 : 0.15;
          context.fillStyle = night ? "#ff9f9a" : "#a1162b";
          context.fill();
          context.lineWidth = ratio;
          context.strokeStyle = night ? "#141619" : "#ffffff";
          context.stroke();
        } else if (points.role[i] === 1) {
          context.arc(x, y, radius, 0, 7);
          context.fillStyle = colour;
          context.fill();
        } else {
          context.arc(x, y, radius * 1.35, 0, 7);
          context.lineWidth = 1.1 * ratio;
          context.strokeStyle = colour;
          context.stroke();
        }
      }
      context.globalAlpha = 1;
      if (chosen >= 0 && !printing) {
        const [x, y] = place(chosen);
        const ink = night ? "#ffffff" : "#000000";
        context.beginPath();
        context.arc(x, y, 10 * ratio, 0, 7);
        context.lineWidth = 3 * ratio;
        context.strokeStyle = ink;
        context.stroke();
      }
    }

    function fit() {
      const width = Math.round(plot.clientWidth * Math.min(2, devicePixelRatio || 1));
      if (width > 0 && width !== plot.width) {
        plot.width = width;
        plot.height = Math.round(width * 0.75);
      }
      draw();
    }

    function choose(i, speak) {
      chosen = i;
      const canvas = byId("map-thumbnail");
      thumbnail.clearRect(0, 0, 128, 128);
      if (i >= 0) {
        const side = points.side;
        thumbnail.imageSmoothingEnabled = false;
        if (atlas.complete) {
          thumbnail.drawImage(atlas, (i % points.columns) * side, Math.floor(i / points.columns) * side, side, side, 0, 0, 128, 128);
        }
        byId("map-point-class").textContent = nameOf(i);
        byId("map-point-id").textContent = points.ids[i];
        byId("map-point-role").textContent = roles[points.role[i]];
        const words = `${nameOf(i)}, ${roles[points.role[i]]}, ${points.ids[i]}`;
        canvas.setAttribute("aria-label", words);
        if (speak) byId("map-said").textContent = words;
      }
      draw();
    }

    function nearest(x, y, reach) {
      let best = -1;
      let least = reach * reach;
      for (const i of order) {
        if (!visible(i)) continue;
        const [px, py] = place(i);
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least || (distance === least && points.role[i] === 2)) { least = distance; best = i; }
      }
      return best;
    }

    /** The nearest point in a direction, sideways steps costing double. */
    function step(dx, dy) {
      if (chosen < 0) return nearest(plot.width / 2, plot.height / 2, Infinity);
      const [x, y] = place(chosen);
      let best = chosen;
      let least = Infinity;
      for (const i of all) {
        if (i === chosen || !visible(i)) continue;
        const [px, py] = place(i);
        const ahead = (px - x) * dx + (py - y) * dy;
        const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
        if (ahead <= 0 || aside > 1.5 * ahead) continue;
        if (ahead + 2 * aside < least) { least = ahead + 2 * aside; best = i; }
      }
      return best;
    }

    function nextSuspect(direction) {
      const shown = suspects.filter(visible);
      if (!shown.length) return chosen;
      const now = shown.indexOf(chosen);
      return shown[now < 0 ? (direction > 0 ? 0 : shown.length - 1) : (now + direction + shown.length) % shown.length];
    }

    function zoom(factor) {
      if (factor === 0) {
        at = { ...whole };
      } else {
        if (chosen >= 0) { at.x = points.x[chosen]; at.y = points.y[chosen]; }
        at.zoom = Math.min(40, Math.max(1, at.zoom * factor));
        if (at.zoom === 1) at = { ...whole };
      }
      draw();
    }

    function keepInSight() {
      if (chosen < 0) return;
      const [x, y] = place(chosen);
      if (x < 0 || y < 0 || x > plot.width || y > plot.height) { at.x = points.x[chosen]; at.y = points.y[chosen]; }
    }

    const keys = {
      ArrowLeft: () => choose(step(-1, 0), true), ArrowRight: () => choose(step(1, 0), true),
      ArrowUp: () => choose(step(0, -1), true), ArrowDown: () => choose(step(0, 1), true),
      n: () => choose(nextSuspect(1), true), p: () => choose(nextSuspect(-1), true),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoom(0),
      Escape: () => { chosen = -1; draw(); plot.blur(); },
    };
    plot.addEventListener("keydown", (event) => {
      const act = keys[event.key] ?? keys[event.key.toLowerCase()];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
      keepInSight();
      draw();
    });
    const toPlot = (event) => {
      const box = plot.getBoundingClientRect();
      const scale = plot.width / box.width;
      return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale, 14 * scale];
    };
    let drag = null;
    plot.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, at: { ...at } }; });
    addEventListener("pointerup", () => { drag = null; });
    plot.addEventListener("pointermove", (event) => {
      if (drag && at.zoom > 1) {
        const unit = 10600 / at.zoom / Math.min(plot.clientWidth, plot.clientHeight);
        at.x = drag.at.x - (event.clientX - drag.x) * unit;
        at.y = drag.at.y - (event.clientY - drag.y) * unit;
        draw();
        return;
      }
      const found = nearest(...toPlot(event));
      if (found >= 0 && found !== chosen) choose(found, false);
    });
    plot.addEventListener("click", (event) => {
      const found = nearest(...toPlot(event));
      if (found >= 0) choose(found, true);
    });
    each("[data-zoom]", (button) => button.addEventListener("click", () => zoom(Number(button.dataset.zoom))));
    byId("map-class").addEventListener("change", (event) => {
      onlyClass = event.target.value;
      page = 0;
      fillTable();
      draw();
    });

    const pageRows = 100;
    let page = 0;
    function fillTable() {
      if (!byId("map-table").open) return;
      const listed = [...order].reverse().filter(visible);
      const pages = Math.max(1, Math.ceil(listed.length / pageRows));
      page = Math.min(pages - 1, Math.max(0, page));
      const shown = listed.slice(page * pageRows, (page + 1) * pageRows);
      byId("map-rows").replaceChildren(...shown.map((i) => {
        const row = document.createElement("tr");
        const head = document.createElement("th");
        head.scope = "row";
        head.textContent = points.ids[i];
        row.append(head);
        for (const text of [nameOf(i), roles[points.role[i]], points.x[i], points.y[i]]) {
          const cell = row.insertCell();
          cell.textContent = text;
          cell.className = typeof text === "number" ? "n" : "";
        }
        return row;
      }));
      byId("map-page").textContent = `page ${page + 1} of ${pages}, ${listed.length} points, suspects first`;
    }
    each("[data-page]", (button) => button.addEventListener("click", () => {
      page += Number(button.dataset.page);
      fillTable();
    }));
    byId("map-table").addEventListener("toggle", fillTable);

    new ResizeObserver(fit).observe(plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    addEventListener("beforeprint", () => { printing = true; fit(); draw(); });
    addEventListener("afterprint", () => { printing = false; draw(); });
    fit();
  }
})();
