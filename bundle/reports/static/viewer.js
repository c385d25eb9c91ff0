// Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
// Opens a folded section that a link leads to, shows a picture in full size on a click, and brings the viewers to life: NiiVue draws, this reads the volumes of
// the page and makes the controls. Nothing here asks the network for anything; the page's policy would forbid it.
"use strict";
(() => {
  const HEADER = 352; // bytes of a NIfTI header; the size of the volume is at 42
  const PLANES = { "all planes": 3, axial: 0, coronal: 1, sagittal: 2 };
  const AXES = ["right to left", "back to front", "bottom to top"]; // of a scan turned to R, A, S

  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    const folded = target && target.querySelector("details");
    if (folded) folded.open = true;
  };

  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  const bytesOf = (text) => {
    const characters = atob(text);
    const bytes = new Uint8Array(characters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
    return bytes;
  };

  const unzip = async (bytes) => {
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(plain).arrayBuffer());
  };

  // Each slice is a picture with its length before it.
  const readSlices = async (bytes, width, height, depth) => {
    const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
    const voxels = new Uint8Array(width * height * depth);
    const lengths = new DataView(bytes.buffer);
    for (let slice = 0, place = 0; slice < depth; slice++) {
      const length = lengths.getUint32(place, true);
      const picture = new Blob([bytes.subarray(place + 4, place + 4 + length)], { type: "image/webp" });
      context.drawImage(await createImageBitmap(picture, { colorSpaceConversion: "none" }), 0, 0);
      const pixels = context.getImageData(0, 0, width, height).data;
      const start = slice * width * height;
      for (let i = 0; i < width * height; i++) voxels[start + i] = pixels[4 * i];
      place += 4 + length;
    }
    return voxels;
  };

  const readVolume = async (about) => {
    const header = bytesOf(about.header);
    const packed = bytesOf(document.getElementById(about.voxels).textContent);
    const size = new DataView(header.buffer);
    const [width, height, depth] = [42, 44, 46].map((place) => size.getInt16(place, true));
    const voxels = about.coding === "gzip" ? await unzip(packed) : await readSlices(packed, width, height, depth);
    const whole = new Uint8Array(HEADER + voxels.length);
    whole.set(header);
    whole.set(voxels, HEADER);
    return whole.buffer;
  };

  // NiiVue's code, once for all viewers of the page
  let library = null;
  const loadLibrary = () => {
    library ??= (async () => {
      const code = await unzip(bytesOf(document.getElementById("niivue").textContent));
      document.head.append(make("script", { textContent: new TextDecoder().decode(code) }));
      return globalThis.niivue;
    })();
    return library;
  };

  class Viewer {
    constructor(place) {
      this.place = place;
      this.about = JSON.parse(place.dataset.about);
      this.hidden = new Set(); // numbers of classes
      this.opacity = 0.5;
      this.loading = Promise.resolve();
    }

    async start() {
      this.niivue = await loadLibrary();
      const canvas = make("canvas");
      const stage = make("div", { className: "stage" }, canvas);
      this.where = make("p", { className: "where" });
      this.note = make("p");
      this.layers = make("span", { className: "controls" });
      this.place.replaceChildren(
        this.makeChoices(), stage, this.makeSliders(), this.makeLegend(), this.where, this.note,
        make("p", {
          className: "where",
          textContent: "Turn the wheel over a plane to scroll, click to move the cross; drag with the right button over " +
            "a region to set the contrast to it, double-click to set it back.",
        }),
      );
      this.nv = new this.niivue.Niivue({
        backColor: [0, 0, 0, 1], crosshairColor: [1, 0.85, 0.2, 0.9], crosshairWidth: 0.25,
        crosshairWidthUnit: "percent", isRadiologicalConvention: true, sagittalNoseLeft: true, // as our pictures
        show3Dcrosshair: false, dragAndDropEnabled: false, logLevel: "error", multiplanarShowRender: 0,
      });
      this.nv.onLocationChange = (location) => this.showPlace(location);
      await this.nv.attachToCanvas(canvas);
      await this.show(0);
      this.place.dataset.state = "ready";
    }

    makeChoices() {
      const cases = make("select");
      this.about.cases.forEach((one, number) => cases.append(make("option", { value: number, textContent: one.name })));
      cases.onchange = () => { this.loading = this.loading.then(() => this.show(Number(cases.value))); };
      const planes = make("select");
      for (const name of Object.keys(PLANES)) planes.append(make("option", { textContent: name }));
      planes.onchange = () => this.nv.setSliceType(PLANES[planes.value]);
      const opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: this.opacity });
      opacity.oninput = () => { this.opacity = Number(opacity.value); this.applyLayers(); };
      const parts = [make("label", {}, "case", cases), make("label", {}, "show", planes)];
      if (this.about.cases.some((one) => one.labels.length)) {
        parts.push(this.layers, make("label", {}, "opacity", opacity));
      }
      return make("div", { className: "controls" }, ...parts);
    }

    makeSliders() {
      this.sliders = AXES.map((name, axis) => {
        const slider = make("input", { type: "range", min: 0, max: 1, step: 1, title: name });
        slider.oninput = () => {
          const size = this.nv.volumes[0].dimsRAS[axis + 1];
          this.nv.scene.crosshairPos[axis] = (Number(slider.value) + 0.5) / size;
          this.nv.createOnLocationChange();
          this.nv.drawScene();
        };
        return slider;
      });
      return make("div", { className: "controls" }, ...this.sliders.map((slider, axis) =>
        make("label", {}, ["sagittal", "coronal", "axial"][axis], slider)));
    }

    makeLegend() {
      const legend = make("div", { className: "controls legend" });
      this.about.classes.forEach((one, place) => {
        const shown = make("input", { type: "checkbox", checked: true });
        shown.onchange = () => {
          this.hidden[shown.checked ? "delete" : "add"](place);
          this.applyColours();
        };
        const swatch = make("span", { className: "swatch" });
        swatch.style.background = one.colour;
        legend.append(make("label", {}, shown, swatch, one.name));
      });
      return legend;
    }

    async show(number) {
      const one = this.about.cases[number];
      this.place.dataset.state = "loading";
      this.note.textContent = one.note;
      const [scan, ...labels] = await Promise.all([one.scan, ...one.labels].map(readVolume));
      this.layers.replaceChildren(...one.labels.map((layer, place) => {
        const last = place === one.labels.length - 1;
        const shown = make("input", { type: "checkbox", checked: last, onchange: () => this.applyLayers() });
        return make("label", {}, shown, layer.name);
      }));
      const { NVImage } = this.niivue;
      const volumes = [await NVImage.new(scan, "scan.nii", "gray", 1)];
      for (const [place, buffer] of labels.entries()) {
        volumes.push(await NVImage.new(buffer, `labels${place}.nii`, "red", this.opacityOf(place)));
        volumes.at(-1).setColormapLabel(this.colours());
      }
      while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0);
      volumes.forEach((volume) => this.nv.addVolume(volume));
      this.sliders.forEach((slider, axis) => { slider.max = this.nv.volumes[0].dimsRAS[axis + 1] - 1; });
      this.nv.scene.crosshairPos = this.nv.mm2frac(one.focus, 0, true);
      this.nv.createOnLocationChange();
      this.nv.drawScene();
      this.place.dataset.state = "ready";
    }

    colours() {
      const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
      this.about.classes.forEach((one, place) => {
        [1, 3, 5].forEach((start, channel) => table["RGB"[channel]].push(parseInt(one.colour.slice(start, start + 2), 16)));
        table.A.push(this.hidden.has(place) ? 0 : 255);
        table.I.push(place + 1);
        table.labels.push(one.name);
      });
      return table;
    }

    applyColours() {
      for (const volume of this.nv.volumes.slice(1)) volume.setColormapLabel(this.colours());
      this.nv.updateGLVolume();
    }

    opacityOf(layer) {
      return this.layers.querySelectorAll("input")[layer].checked ? this.opacity : 0;
    }

    applyLayers() {
      this.nv.volumes.slice(1).forEach((volume, layer) => { volume.opacity = this.opacityOf(layer); });
      this.nv.updateGLVolume();
    }

    showPlace(location) {
      this.sliders.forEach((slider, axis) => {
        slider.value = Math.floor(this.nv.scene.crosshairPos[axis] * (Number(slider.max) + 1));
      });
      const [scan, ...labels] = location.values;
      const names = [...this.layers.children].map((layer, place) => {
        const number = Math.round(labels[place]?.value ?? 0);
        return `${layer.textContent}: ${number ? this.about.classes[number - 1].name : "none"}`;
      });
      const millimetres = [...location.mm].slice(0, 3).map((value) => value.toFixed(1)).join(", ");
      this.where.textContent = [`R, A, S ${millimetres} mm`, `intensity ${scan.value.toPrecision(4)}`, ...names].join("; ");
    }
  }

  const start = async (place) => {
    try {
      place.firstElementChild.textContent = "The scans are being read ...";
      await new Viewer(place).start();
    } catch (error) {
      place.dataset.state = "failed";
      place.replaceChildren(make("p", {
        textContent: `The viewer needs WebGL 2, which this browser does not offer (${error.message}). ` +
          "The pictures of this page show the same.",
      }));
    }
  };

  openTarget();
  document.addEventListener("click", ({ target }) => {
    if (target.matches("figure img")) target.parentElement.classList.toggle("large");
  });
  addEventListener("hashchange", openTarget);
  const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    seen.unobserve(entry.target);
    start(entry.target);
  }), { rootMargin: "200px" });
  document.querySelectorAll(".viewer").forEach((place) => seen.observe(place));
})();
