"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const radios = [...document.querySelectorAll("input[name=language]")];
  const stored = (value) => { // a browser may refuse storage to files: the switch works all the same
    try {
      if (value === undefined) return localStorage.getItem("fgod.language");
      localStorage.setItem("fgod.language", value);
    } catch { }
    return null;
  };
  const earlier = radios.find((radio) => radio.value === stored());
  if (earlier) earlier.checked = true;
  const tell = () => { root.lang = radios.find((radio) => radio.checked).value; };
  radios.forEach((radio) => radio.addEventListener("change", () => { stored(radio.value); tell(); }));
  tell();

  const filters = document.querySelector("form.filters");
  if (filters) {
    const rows = [...document.querySelectorAll("tr[data-suite]")];
    const apply = () => {
      const { suite, language, changed, failed } = filters.elements;
      for (const row of rows) {
        row.hidden = (suite.value !== "" && row.dataset.suite !== suite.value)
          || (language.value !== "" && row.dataset.language !== language.value)
          || (changed.checked && !("changed" in row.dataset)) || (failed.checked && !("failed" in row.dataset));
      }
    };
    filters.addEventListener("change", apply);
    apply(); // a browser that reloads keeps what was chosen
  }

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));
})();
