// A plugin of JupyterLab, loaded by `make demo` alone: runs the notebook that the address names, and shows what its
// cells show and nothing else. It is written as a federated module by hand, so nothing has to be built.

const WAITING = "One moment: the digits are being laid out.";
const LOOK = `
  #jp-top-panel, #jp-menu-panel, #jp-bottom-panel, #jp-top-bar, .jp-SideBar, #jp-left-stack, #jp-right-stack,
  .jp-NotebookPanel .jp-Toolbar, .jp-CodeCell .jp-Cell-inputWrapper, .jp-Notebook-footer, .jp-Collapser, .jp-InputPrompt,
  .jp-OutputPrompt, .jp-OutputArea-promptOverlay, .jp-cell-toolbar, .lm-TabBar, .jp-scrollbarWidget,
  .jp-WindowedPanel-outer::after { display: none !important; }
  #jp-main-content-panel, #jp-main-vsplit-panel, #jp-main-split-panel, #jp-main-dock-panel, .jp-NotebookPanel,
  .jp-Notebook, .jp-WindowedPanel-outer { position: fixed !important; inset: 0 !important; width: 100% !important;
    height: 100% !important; contain: none !important; padding: 0 !important; border: 0 !important; }
  .jp-WindowedPanel-outer { overflow: hidden auto !important; background: var(--jp-layout-color0); }
  .jp-WindowedPanel-inner { max-width: 1092px; margin: 0 auto !important; }
  .jp-WindowedPanel-viewport { padding: 4px 16px 48px !important; box-sizing: border-box; }
  .jp-Notebook .jp-Cell { padding: 0 !important; border: 0 !important; box-shadow: none !important; }
  .jp-Notebook .jp-MarkdownOutput, .jp-OutputArea-output { padding: 0 !important; }
  #inflib-waiting { position: fixed; inset: 0; z-index: 20000; display: grid; place-content: center; padding: 20px;
    font-family: system-ui, sans-serif; color: #787878; background: var(--jp-layout-color0, #fff); }
`;

async function shown(app) {
  const page = await new Promise(found => {
    const look = () => {
      const page = [...app.shell.widgets("main")].find(widget => widget.context?.sessionContext && widget.content?.model);
      if (page) found(page); else setTimeout(look, 100);
    };
    look();
  });
  await page.context.ready;
  await page.context.sessionContext.ready;
  return page;
}

async function start(app) {
  document.head.append(Object.assign(document.createElement("style"), { textContent: LOOK }));
  const waiting = Object.assign(document.createElement("div"), { id: "inflib-waiting", textContent: WAITING });
  waiting.setAttribute("role", "status");
  document.body.append(waiting);
  app.commands.processKeydownEvent = () => {};  // nobody sees the cells that JupyterLab's keys would change
  await app.restored;
  const page = await shown(app), { model } = page.context;
  // what runs here is nobody's work: nothing is saved, and nobody is asked to on leaving
  const forget = () => { if (model.dirty) model.dirty = false; };
  model.stateChanged.connect(forget);
  forget();
  app.shell.activateById(page.id);
  await app.commands.execute("notebook:run-all-cells");
  waiting.remove();
}

const plugin = { id: "inflib-demo:page", autoStart: true, activate: app => void start(app) };

(window._JUPYTERLAB ??= {})["inflib-demo"] = {
  init() {},
  get: async () => () => ({ __esModule: true, default: plugin }),
};
