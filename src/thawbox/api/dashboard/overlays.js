// What lies over the page: notices, questions, menus. Each gives the focus back to where it came from.

import { h, render } from "./dom.js";
import { icon } from "./icons.js";

const NOTICE_SECONDS = 6;
let notices = [];
let number = 0;
let questions = [];

/** Say that something was done; gone by itself after a while. */
export function notify(text, detail = "") {
  const notice = { number: (number += 1), text, detail };
  show(notice);
  setTimeout(() => dismiss(notice.number), NOTICE_SECONDS * 1000);
}

/** Say that something failed, why, and what to do; stays until it is dismissed. */
export function complain(what, problem) {
  console.info(what, problem);
  show({ number: (number += 1), text: what, problem });
}

function show(notice) {
  notices = [notice, ...notices].slice(0, 4);
  draw();
}

function dismiss(which) {
  notices = notices.filter((notice) => notice.number !== which);
  draw();
}

/** Ask before something is done. Resolves to the fields' values, or to null when it is not to be done.
 *
 * `fields`: `{name, label, type, value, hint, options, min, max, required}`; `danger` colours the button that does it.
 */
export function ask({ title, text = "", fields = [], action, danger = false }) {
  return new Promise((resolve) => {
    const question = { number: (number += 1), title, text, fields, action, danger };
    question.answer = (values) => {
      resolve(values);
      question.dialog?.close(); // gives the focus back, which taking it off the page does not
      questions = questions.filter((one) => one !== question);
      draw();
    };
    questions = [...questions, question];
    draw();
  });
}

function questionView(question) {
  const titleId = `question-${question.number}`;
  return h(
    "dialog",
    {
      key: question.number,
      class: "question",
      "aria-labelledby": titleId,
      onclose: () => question.answer(null),
      mounted: (element) => {
        question.dialog = element;
        queueMicrotask(() => element.showModal());
      },
    },
    h(
      "form",
      {
        method: "dialog",
        onsubmit: (event) => {
          event.preventDefault();
          question.answer(valuesOf(event.target));
        },
      },
      h("h2", { id: titleId }, question.title),
      question.text && h("p", {}, question.text),
      question.fields.map(fieldView),
      h(
        "div",
        { class: "buttons" },
        h(
          "button",
          { type: "button", onclick: () => question.answer(null), mounted: question.danger ? focusSoon : undefined },
          "Cancel",
        ),
        h("button", { type: "submit", class: question.danger ? "danger" : "primary" }, question.action),
      ),
    ),
  );
}

/** In a dangerous question the focus is on the button that does nothing. */
function focusSoon(element) {
  element.setAttribute("autofocus", "");
}

/** What is typed is the field's own: the value is given once, when the field appears, and never again. */
function fieldView(field) {
  const { name, label, type = "text", hint, options, value, ...rest } = field;
  const described = hint ? { "aria-describedby": `${name}-hint` } : {};
  const words = hint && h("small", { id: `${name}-hint` }, hint);
  if (type === "checkbox") {
    return h(
      "div",
      { class: "check" },
      h("label", {}, h("input", { type, name, ...described }), h("span", {}, label)),
      words,
    );
  }
  const begin = (element) => {
    if (value !== undefined) element.value = value;
  };
  const control = options
    ? h(
        "select",
        { name, ...described },
        options.map(([one, shown]) => h("option", { value: one }, shown)),
      )
    : h("input", { type, name, autocomplete: "off", spellcheck: "false", mounted: begin, ...rest, ...described });
  return h("div", { class: "field" }, h("label", {}, h("span", {}, label), control), words);
}

function valuesOf(form) {
  const controls = [...form.elements].filter((control) => control.name);
  return Object.fromEntries(
    controls.map((control) => [
      control.name,
      control.type === "checkbox"
        ? control.checked
        : control.type === "number"
          ? control.valueAsNumber
          : control.value.trim(),
    ]),
  );
}

function noticeView(notice) {
  const { problem } = notice;
  return h(
    "div",
    { key: notice.number, class: problem ? "notice bad" : "notice", role: problem ? "alert" : "status" },
    h(
      "div",
      {},
      h("strong", {}, notice.text),
      notice.detail && h("p", {}, notice.detail),
      problem && h("p", {}, problem.why ?? String(problem)),
      problem?.remediation && h("p", { class: "remedy" }, h("b", {}, "What to do: "), problem.remediation),
      problem?.code && h("code", { class: "code" }, problem.code),
      problem?.log && h("details", {}, h("summary", {}, "Log"), h("pre", {}, problem.log)),
    ),
    h("button", { class: "ghost", "aria-label": "Dismiss", onclick: () => dismiss(notice.number) }, icon("close")),
  );
}

function draw() {
  render(document.getElementById("notices"), notices.map(noticeView));
  render(document.getElementById("questions"), questions.map(questionView));
}

/** A menu below its button. `items`: `{label, icon, act, danger, disabled}`; null is a line. Arrow keys move in it. */
export function openMenu(button, label, items) {
  document.getElementById("menu")?.hidePopover();
  const host = document.getElementById("menus");
  const close = (returnFocus = true) => {
    document.getElementById("menu")?.hidePopover();
    if (returnFocus) button.focus();
  };
  render(
    host,
    h(
      "div",
      {
        key: (number += 1),
        id: "menu",
        class: "menu",
        role: "menu",
        "aria-label": label,
        popover: "auto",
        onkeydown: (event) => moveInMenu(event, close),
        ontoggle: (event) => {
          if (event.newState === "closed") {
            button.setAttribute("aria-expanded", "false");
            render(host);
          }
        },
        mounted: (element) => queueMicrotask(() => openAt(element, button)),
      },
      items.map((item) =>
        item === null
          ? h("hr", {})
          : h(
              "button",
              {
                type: "button",
                role: "menuitem",
                tabindex: "-1",
                class: item.danger ? "danger" : "",
                "aria-disabled": item.disabled ? "true" : undefined,
                title: item.disabled || undefined,
                onclick: () => {
                  if (!item.disabled) {
                    close();
                    item.act();
                  }
                },
              },
              icon(item.icon),
              h("span", {}, item.label),
            ),
      ),
    ),
  );
}

function openAt(menu, button) {
  menu.showPopover();
  button.setAttribute("aria-expanded", "true");
  const anchor = button.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  const isBelow = anchor.bottom + height + 8 < innerHeight || anchor.top < height;
  menu.style.left = `${Math.max(8, Math.min(anchor.right - width, innerWidth - width - 8))}px`;
  menu.style.top = `${Math.max(8, isBelow ? Math.min(anchor.bottom + 4, innerHeight - height - 8) : anchor.top - height - 4)}px`;
  menu.querySelector("[role=menuitem]")?.focus();
}

function moveInMenu(event, close) {
  const items = [...event.currentTarget.querySelectorAll("[role=menuitem]")];
  const at = items.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1 + items.length, Home: 0, End: items.length - 1 }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    items[to % items.length].focus();
  } else if (event.key === "Escape" || event.key === "Tab") {
    event.preventDefault();
    close();
  }
}
