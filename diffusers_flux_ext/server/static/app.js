/** Starts the page: asks the server what it offers, and joins the parts. */

import { createBackdropChoice } from "./canvas/backdrop.js";
import { listenToKeys, listenToUndo } from "./canvas/keys.js";
import { listenToPointer } from "./canvas/pointer.js";
import { createRegionList } from "./canvas/region_list.js";
import { createRegions } from "./canvas/regions.js";
import { createToolbar } from "./canvas/toolbar.js";
import { createView } from "./canvas/view.js";
import { api } from "./core/api.js";
import { createCatalog } from "./core/catalog.js";
import { byId, h } from "./core/dom.js";
import { canvasSize, emptyDraft } from "./core/draft.js";
import { addImage } from "./core/images.js";
import { buildJob, draftOf } from "./core/job.js";
import { keepSaved, savedDraft } from "./core/persist.js";
import { createStore } from "./core/store.js";
import { createErrors } from "./form/errors.js";
import { createCallPanels } from "./panels/call.js";
import { createJobPanel } from "./panels/job_json.js";
import { createLorasPanel } from "./panels/loras.js";
import { createMethodsPanel, createRegionsPanel } from "./panels/methods.js";
import { createMorePanels } from "./panels/more.js";
import { createResults } from "./results/results.js";
import { suggestLora } from "./shell/suggest.js";
import { createModelChoice, defaultCall } from "./shell/model.js";
import { createTabs } from "./shell/tabs.js";
import { createThemeSwitch } from "./shell/theme.js";
import { say } from "./shell/toast.js";

const FIRST_BRUSH = { tool: "box", width: 0.16 };

async function start() {
    createThemeSwitch(byId("theme"));
    const [schema, options] = await Promise.all([api.schema(), api.options()]);
    const catalog = createCatalog(schema, options);
    const store = createStore(firstDraft(catalog));
    const errors = createErrors();
    const tabs = createTabs(["draw", "result", "compare"]);
    const results = createResults({
        store,
        catalog,
        errors,
        tabs,
        load: (job, looks) => store.replace(draftOf(job, catalog.isRegion, looks)),
        say,
    });
    const form = { store, options, catalog, errors, lastImage: results.lastImage };

    createModelChoice(byId("model-choice"), store, catalog);
    const list = createDrawing(store, catalog, errors, results.lastImage);
    createSettings(form, catalog, () => {
        tabs.reveal("draw");
        list.focusFirst();
    });
    suggestLora(store, catalog, say);
    keepSaved(store);
    byId("app").hidden = false;
    byId("loading").hidden = true;
    await results.start();
}

function firstDraft(catalog) {
    const saved = savedDraft();
    if (saved && catalog.models.some((each) => each.name === saved.model)) return saved;
    const model = catalog.models[0];
    return emptyDraft(model?.name ?? "", defaultCall(model));
}

function createDrawing(store, catalog, errors, lastImage) {
    const brush = { ...FIRST_BRUSH };
    const canvas = byId("canvas");
    const regions = createRegions(store);
    const view = createView(canvas, store, () => canvasSize(store.state, catalog.model(store.state.model)));
    const upload = (file) => addImage(file, catalog.options.limits?.upload_bytes);
    const list = createRegionList(byId("regions"), store, regions, errors, upload);
    const drawn = (id, type) => type !== "touch" && brush.tool === "box" && list.focus(id);
    const board = { canvas, store, regions, view, brush, say, drawn };
    byId("tools").append(createToolbar(brush, regions));
    byId("stage-head").append(createBackdropChoice(store, view, catalog, lastImage));
    listenToPointer(board);
    listenToKeys(board);
    listenToUndo(regions);
    return list;
}

function createSettings(form, catalog, drawRegions) {
    const { store } = form;
    const more = createMorePanels(form, catalog);
    const [settings, images] = createCallPanels(form, catalog, byId("prompt"));
    const load = (job) => store.replace(draftOf(job, catalog.isRegion));
    const panels = [
        settings,
        createLorasPanel(form, catalog),
        createMethodsPanel(form, catalog, { choosePipeline: more.choosePipeline, drawRegions }),
        images,
        createRegionsPanel(form, catalog),
        ...more.elements,
        createJobPanel(store, () => buildJob(store.state).job, load, say),
    ];
    byId("panels").append(...panels.filter(Boolean));
}

start().catch((error) => {
    byId("loading").replaceChildren(
        h("p", { class: "error" }, error.message),
        h("button", { type: "button", class: "button", on: { click: () => location.reload() } }, "Try again"),
    );
});
