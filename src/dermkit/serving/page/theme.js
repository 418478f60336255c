// Light or dark: as the system says, until the switch says otherwise. It is not remembered, as nothing of this page is.

import { byId } from "./dom.js";

export function watchTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = () => byId("theme-switch").setAttribute("aria-pressed", String(isDark(system)));
  byId("theme-switch").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark(system) ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  show();
}

function isDark(system) {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : system.matches;
}
