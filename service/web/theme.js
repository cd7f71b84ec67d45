/** Light or dark: as the system says, or as the person at the page chose. */

import { remember, remembered } from "./storage.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Follow a select element with the options system, light and dark. */
export function followTheme(select) {
  const apply = () => {
    const chosen = select.value === "system" ? (dark.matches ? "dark" : "light") : select.value;
    document.documentElement.dataset.theme = chosen;
  };
  const before = remembered("theme");
  if (before) select.value = before;
  select.addEventListener("change", () => {
    remember("theme", select.value);
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
}
