// What agents run: configurations by group, rollouts, and the files that plugins are made of.

import { get, may, send, upload } from "./api.js";
import { ask, busy, bytes, field, fill, h, panel, pill, select, table, time, toast } from "./dom.js";

const ROLLOUT_STATES = { canary: "accent", rolling: "accent", done: "good", aborted: "warn", failed: "bad" };
const HOST_STATES = { waiting: "idle", sent: "accent", running: "good", wrong: "bad" };

export async function plugins(page) {
  const parts = Object.fromEntries(["rollouts", "wanted", "files"].map((name) => [name, h("div")]));
  let state = { wanted: null, rollouts: [], files: [], groups: [] };

  const reload = async () => {
    const [wanted, rollouts, files, groups] = await Promise.all([
      get("/plugins"), get("/rollouts").catch(() => []), get("/files").catch(() => []), get("/groups").catch(() => []),
    ]);
    state = { wanted, rollouts: rollouts.rollouts ?? rollouts, files: files.files ?? files, groups };
    draw();
  };

  const draw = () => {
    fill(parts.rollouts, rolloutsPanel(state.rollouts, reload));
    fill(parts.wanted, wantedPanel(state, reload));
    fill(parts.files, filesPanel(state.files, reload));
  };

  const push = h("button", { class: "primary", onclick: (event) => busy(event.currentTarget, async () => {
    // Files and groups may be new since the page was opened.
    await reload();
    pushDialog(state, reload);
  }) }, "Push a plugin");
  fill(page.main, h("div", { class: "headline" }, h("h1", {}, "Plugins"), may("operate") && h("div", { class: "push" }, push)),
    parts.rollouts, parts.wanted, parts.files);
  await reload();
  page.listen({}, { rollouts: () => reload().catch((error) => toast(error.message, true)) });
}

/** Everybody, the groups and the hosts that have a configuration of their own. */
function scopes(wanted) {
  const of = (kind, map) => Object.entries(map ?? {}).map(([name, plugins]) => ({ [kind]: name, name: `${kind} ${name}`, plugins }));
  const everybody = wanted.default ? [{ name: "everybody else", plugins: wanted.default }] : [];
  return [...of("group", wanted.groups), ...of("host", wanted.hosts), ...everybody];
}

function wantedPanel({ wanted }, reload) {
  const all = scopes(wanted);
  const rows = all.flatMap((scope) => {
    const plugins = scope.plugins.length ? scope.plugins : [null];
    return plugins.map((plugin, index) => ({ scope, plugin, first: index === 0 }));
  });
  const remove = async ({ scope, plugin }) => {
    if (!(await ask(`Stop ${plugin.name} for ${scope.name}?`, [h("p", {}, "Agents end the plugin and remove its files.")], "Stop it", true))) return;
    const { group, host } = scope;
    await send("PUT", "/plugins", { group, host, plugins: scope.plugins.filter((other) => other.name !== plugin.name) });
    await reload();
  };
  const columns = [
    { name: "For", nowrap: true, cell: ({ scope, first }) => (first ? h("b", {}, scope.name) : "") },
    { name: "Plugin", cell: ({ plugin }) => plugin?.name ?? h("span", { class: "quiet" }, "none") },
    { name: "Version", cell: ({ plugin }) => plugin?.version },
    { name: "Detail", what: true, cell: ({ plugin }) => h("code", {}, plugin?.detail ?? "") },
    { name: "", num: true, cell: ({ scope, plugin, first }) => may("operate") && [
      first && h("button", { class: "plain", onclick: () => versionsDialog(scope, reload) }, "Versions"),
      plugin && h("button", { class: "plain danger", onclick: (event) => busy(event.currentTarget, () => remove({ scope, plugin })) }, "Stop"),
    ] },
  ];
  const none = h("p", { class: "empty" }, "Nobody has said yet what agents run, so that they keep what they have.");
  return panel("What runs where", null, rows.length ? table(columns, rows) : none);
}

function rolloutsPanel(rollouts, reload) {
  const shown = rollouts.slice(0, 5);
  if (!shown.length) return null;
  return panel("Rollouts", null, h("div", { class: "body stack" }, shown.map((rollout) => rolloutRow(rollout, reload))));
}

function rolloutRow(rollout, reload) {
  const running = rollout.hosts.filter((host) => host.state === "running").length;
  const act = (what, text, kind) => h("button", { class: kind, onclick: (event) => busy(event.currentTarget, async () => {
    await send("POST", `/rollouts/${rollout.id}/${what}`, {});
    await reload();
  }) }, text);
  const going = ["canary", "rolling"].includes(rollout.state);
  const columns = [
    { name: "Host", cell: (host) => [h("a", { href: `#/hosts/${encodeURIComponent(host.id)}` }, host.id.slice(0, 18)), rollout.canary.includes(host.id) && [" ", pill("accent", "canary")]] },
    { name: "State", cell: (host) => pill(HOST_STATES[host.state] ?? "idle", host.state) },
    { name: "Version", cell: (host) => host.version ?? "–" },
    { name: "", what: true, cell: (host) => host.error ?? "" },
  ];
  return h("div", { class: "stack" },
    h("div", { class: "row" }, h("b", {}, `${rollout.plugin.name} ${rollout.plugin.version}`), `for ${rollout.group ?? "everybody"}`,
      pill(ROLLOUT_STATES[rollout.state] ?? "idle", rollout.state), h("span", { class: "quiet small" }, "by ", rollout.created_by, " ", time(rollout.created_ms)),
      may("operate") && rollout.state === "canary" && act("promote", "Promote to all", "primary"),
      may("operate") && going && act("abort", "Abort and put back", "danger")),
    rollout.reason && h("p", { class: "small quiet" }, rollout.reason),
    h("progress", { max: Math.max(1, rollout.hosts.length), value: running, "aria-label": `${running} of ${rollout.hosts.length} hosts run it` }),
    h("details", {}, h("summary", { class: "small" }, `${running} of ${rollout.hosts.length} hosts run it`), table(columns, rollout.hosts)));
}

function filesPanel(files, reload) {
  const remove = async (file) => {
    if (!(await ask(`Delete ${file.name}?`, [], "Delete", true))) return;
    await send("DELETE", `/files/${file.sha256}`);
    await reload();
  };
  const columns = [
    { name: "File", cell: (file) => file.name },
    { name: "Size", num: true, cell: (file) => bytes(file.len) },
    { name: "SHA-256", cell: (file) => h("code", { title: file.sha256 }, `${file.sha256.slice(0, 16)}…`) },
    { name: "Uploaded", cell: (file) => [time(file.uploaded_ms), " by ", file.uploaded_by] },
    { name: "", num: true, cell: (file) => may("operate") && h("button", { class: "plain danger", onclick: (event) => busy(event.currentTarget, () => remove(file)) }, "Delete") },
  ];
  if (!files.length) return null;
  return panel("Files", null, table(columns, files));
}

/** Shows earlier versions of a configuration, any of which can be put back. */
async function versionsDialog(scope, reload) {
  const { group, host } = scope;
  const answer = await get("/plugins/history", { group, host }).catch((error) => toast(error.message, true));
  if (!answer) return;
  const versions = answer.versions ?? answer;
  const back = (version) => h("button", { onclick: (event) => busy(event.currentTarget, async () => {
    await send("POST", "/plugins/rollback", { group, host, version: version.version });
    toast(`${scope.name}: version ${version.version} is back`);
    dialog.close();
    await reload();
  }) }, "Put back");
  const columns = [
    { name: "Version", cell: (version) => `${version.version}` },
    { name: "Set", cell: (version) => [time(version.changed_ms), " by ", version.changed_by] },
    { name: "Plugins", what: true, cell: (version) => (version.plugins ?? []).map((plugin) => `${plugin.name} ${plugin.version}`).join(", ") || "none" },
    { name: "", num: true, cell: (version) => version !== versions[0] && back(version) },
  ];
  const dialog = h("dialog", { class: "wide", onclose: () => dialog.remove() }, h("div", { class: "stack" }, h("h2", {}, `Versions for ${scope.name}`),
    table(columns, versions), h("div", {}, h("button", { onclick: () => dialog.close() }, "Close"))));
  document.body.append(dialog);
  dialog.showModal();
}

/** Takes a file, or one that is here already, and rolls it out. */
function pushDialog({ files, groups }, reload) {
  const file = h("input", { type: "file", name: "file" });
  const known = select([["", "the file above"], ...files.map((file) => [file.sha256, `${file.name} (${file.sha256.slice(0, 8)})`])], "");
  const name = h("input", { required: true, maxlength: 64, placeholder: "procwatch" });
  const version = h("input", { required: true, placeholder: "1.0.0" });
  const type = select([["", "program"], ["tar.gz", "archive (tar.gz)"]], "");
  const detail = h("input", { placeholder: "mode=auto" });
  const signature = h("input", { placeholder: "only with plugins.public_key" });
  const target = select([["", "everybody"], ...groups.map((group) => [group.name, `group ${group.name} (${group.hosts} hosts)`])], "");
  const canary = h("input", { type: "number", min: 0, max: 1000, value: "1" });
  const wait = h("input", { type: "number", min: 0, max: 86400, value: "0" });
  const progress = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Upload" });
  const said = h("p", { class: "small quiet", role: "status" });
  file.onchange = () => {
    const chosen = file.files[0];
    if (!chosen) return;
    if (!name.value) name.value = chosen.name.replace(/[-_.]?\d.*$|\.tar\.gz$|\.gz$/, "");
    type.value = /\.(tar\.gz|tgz)$/.test(chosen.name) ? "tar.gz" : "";
  };
  const submit = async (event) => {
    event.preventDefault();
    await busy(button, async () => {
      let sha256 = known.value;
      if (!sha256) {
        if (!file.files[0]) throw new Error("Choose a file");
        progress.hidden = false;
        const answer = await upload(`/files?name=${encodeURIComponent(file.files[0].name)}`, file.files[0], (done, all) => {
          progress.value = done / all;
          said.textContent = `${bytes(done)} of ${bytes(all)}`;
        });
        sha256 = answer.sha256;
        said.textContent = `SHA-256 ${sha256}`;
      }
      const plugin = { name: name.value, version: version.value, type: type.value, detail: detail.value, signature: signature.value, file: sha256 };
      await send("POST", "/rollouts", { group: target.value || null, plugin, canary: Number(canary.value), wait_s: Number(wait.value) });
      toast(`${plugin.name} ${plugin.version} is on its way`);
      dialog.close();
      await reload();
    });
  };
  const button = h("button", { class: "primary" }, "Roll out");
  const form = h("form", { onsubmit: submit }, h("h2", {}, "Push a plugin"), h("div", { class: "fields" },
    h("div", { class: "wide" }, field("File", file)), files.length > 0 && h("div", { class: "wide" }, field("Or a file that is here", known)),
    field("Name", name), field("Version", version), field("Kind", type), field("Detail", detail), field("Signature", signature),
    field("For", target), field("Canary hosts first", canary, "0: all at once"), field("Then wait, seconds", wait, "0: until somebody promotes it")),
  progress, said, h("div", { class: "row" }, button, h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Cancel")));
  const dialog = h("dialog", { onclose: () => dialog.remove() }, form);
  document.body.append(dialog);
  dialog.showModal();
}
