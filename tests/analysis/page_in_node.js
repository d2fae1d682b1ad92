// Runs the script of an attention page without a browser: just enough of a document to click and point in.
// usage: node page_in_node.js PAGE.html STEPS.json, prints what the page says after each step.
"use strict";
const fs = require("fs");
const vm = require("vm");
const page = fs.readFileSync(process.argv[2], "utf8");
const steps = JSON.parse(fs.readFileSync(process.argv[3], "utf8"));

class Element {
  constructor(tag) {
    Object.assign(this, { tag, children: [], attributes: {}, listeners: {}, dataset: {}, tabIndex: 0 });
    this.clientWidth = 800;
    this.style = { setProperty(name, value) { this[name] = value; } };
    this.classes = new Set();
    this.classList = { toggle: (name, on) => (on ? this.classes.add(name) : this.classes.delete(name)) };
  }
  setAttribute(name, value) {
    if (typeof value !== "string") throw new TypeError(`${name} is no string`);
    this.attributes[name] = value;
    if (name.startsWith("data-")) this.dataset[name.slice(5)] = value;
  }
  append(...children) { this.children.push(...children.map((c) => (typeof c === "string" ? { textContent: c } : c))); }
  replaceChildren(...children) { this.children = []; this.append(...children); }
  get textContent() { return this.children.map((child) => child.textContent).join(""); }
  set textContent(text) { this.children = [{ textContent: String(text) }]; }
  addEventListener(name, action) { (this.listeners[name] ||= []).push(action); }
  fire(name, event = {}) {
    const all = { preventDefault() {}, stopPropagation() {}, target: this, ...event };
    for (const action of this.listeners[name] || []) action(all);
  }
  focus() { Element.focused = this; this.fire("focus"); }
  getBoundingClientRect() { return { left: 0, top: 0 }; }
  getContext() {
    return {
      createImageData: (width, height) => ({ data: new Uint8ClampedArray(4 * width * height) }),
      putImageData: (image) => { this.painted = image.data; },
    };
  }
  find(test) {
    const found = test(this) ? [this] : [];
    for (const child of this.children) if (child.find) found.push(...child.find(test));
    return found;
  }
}

const byId = {};
for (const [, id] of page.matchAll(/\bid="(\w+)"/g)) byId[id] = new Element(id);
const scripts = [...page.matchAll(/<script([^>]*)>([\s\S]*?)<\/script>/g)];
byId.data.textContent = scripts[0][2];
const root = new Element("html"), top = new Element("document");
const seen = new Element("media");
const document = Object.assign(top, {
  documentElement: root,
  getElementById: (id) => byId[id],
  createElement: (tag) => new Element(tag),
  createElementNS: (_, tag) => new Element(tag),
});
vm.runInNewContext(scripts[1][2], {
  document, atob, innerWidth: 1200, addEventListener() {},
  matchMedia: () => Object.assign(seen, { matches: false }),
});

const said = steps.map(([what, where, event]) => {
  if (what === "thumb") byId.heads.find((e) => e.attributes["aria-label"] === where)[0].fire("click");
  else if (what === "tab") byId.tabs.children[where].fire("click");
  else if (what === "view") byId.views.children[where].fire("click");
  else if (what === "point") byId.view.find((e) => e.attributes.class === "cells")[0].fire("pointermove", event);
  else if (what === "key") byId[where].fire("keydown", event);
  else if (what === "press") byId.view.find((e) => e.attributes.class === where)[0].fire("keydown", event);
  else if (what === "token") byId.view.find((e) => e.dataset.side === "from")[where].fire("pointerenter");
  else throw new Error(what);
  return {
    one: byId.one.textContent, readout: byId.readout.textContent, facts: byId.facts.children.map((e) => e.textContent),
    lines: byId.view.find((e) => e.tag === "line").length,
  };
});
const thumbs = byId.heads.find((e) => e.attributes.class === "thumb");
console.log(JSON.stringify({
  ready: root.dataset.ready, thumbs: thumbs.length, painted: thumbs.filter((e) => e.children[0].painted).length,
  tabs: byId.tabs.children.map((e) => e.textContent), said,
}));
