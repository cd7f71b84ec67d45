/** Light or dark: as the system says, or as the person at the page chose. Choices are kept in the browser. */

const dark = matchMedia("(prefers-color-scheme: dark)");

/** What was chosen before; null where nothing was, or the browser keeps nothing. */
export function remembered(name) {
  try {
    return localStorage.getItem(`visionai.${name}`);
  } catch {
    return null; // storage is switched off: the page works without
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`visionai.${name}`, value);
  } catch {
    // As above: it lasts until the page is closed.
  }
}

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
