// Draws the figures in the page's colours, and again when those change; saves figures; copies commands.
(() => {
  "use strict";
  const stored = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("screen and (prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");
  const PRINT_WIDTH = 640; // fits A4 and Letter between the margins of the style sheet

  const repaint = (value) => {
    if (typeof value === "string") return stored.dark[value] ?? value;
    if (Array.isArray(value)) return value.map(repaint);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, repaint(inner)]));
    }
    return value;
  };
  const plots = [...document.querySelectorAll("[data-figure]")];

  const draw = (plot, width) => {
    const figure = stored.figures[plot.dataset.figure];
    const { data, layout } = dark.matches ? repaint(figure) : structuredClone(figure);
    Object.assign(layout, width ? { width, autosize: false } : { autosize: true });
    if (coarse.matches) layout.dragmode = false; // a finger on a figure scrolls the page
    const options = {
      responsive: true,
      displaylogo: false,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: figure.file, width: 720, height: layout.height },
    };
    return Plotly.react(plot, data, layout, options).then(() => plot.setAttribute("data-drawn", "true"));
  };
  const drawAll = (width) => plots.map((plot) => draw(plot, width));
  drawAll();
  dark.addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => drawAll(PRINT_WIDTH));
  addEventListener("afterprint", () => drawAll());

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.save) {
      const { data, layout, file } = stored.figures[button.dataset.of]; // light: what paper is
      const size = { width: 720, height: layout.height, scale: button.dataset.save === "png" ? 3 : 1 };
      await Plotly.downloadImage({ data, layout }, { format: button.dataset.save, filename: file, ...size });
    } else if (button.dataset.copy) {
      const code = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // a browser that does not let a file copy: at least select it
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    }
  });

  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(entry.target.id)?.setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-10% 0px -80% 0px" },
  );
  for (const id of links.keys()) seen.observe(document.getElementById(id));
})();
