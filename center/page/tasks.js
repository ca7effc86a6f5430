// What agents are told to do once, and what they answer.

import { get, may, send } from "./api.js";
import { shortId } from "./hosts.js";
import { busy, bytes, field, fill, h, panel, pill, select, table, time, toast } from "./dom.js";

/** Tasks with a form of their own: their plugin, their data type, and how `data` is made from the fields. */
const KNOWN = [
  {
    name: "Fetch a file", object: "elkeid-agent", type: 1050,
    fields: [["path", "Path on the host", "/var/log/syslog"], ["buf_size", "Bytes a second", "102400"]],
    data: (values) => ({ path: values.path, buf_size: Number(values.buf_size) }),
  },
  {
    name: "Say where the host is", object: "elkeid-agent", type: 1051,
    fields: [["idc", "idc", "dc-1"], ["region", "Region", "default"]],
    data: (values) => ({ idc: values.idc, region: values.region }),
  },
  { name: "End the agent", object: "elkeid-agent", type: 1060, fields: [], data: () => ({}), warning: "The agent ends in order. Its service manager starts it again." },
  ...[["Processes", 5050], ["Ports", 5051], ["Users", 5052], ["Cron jobs", 5053], ["Services", 5054], ["Software", 5055], ["Containers", 5056],
    ["Integrity", 5057], ["Volumes", 5058], ["Network interfaces", 5059], ["Applications", 5060], ["Kernel modules", 5062]]
    .map(([name, type]) => ({ name: `Collect: ${name}`, object: "collector", type, fields: [], data: () => ({}) })),
  { name: "Scan a path", object: "scanner", type: 6053, fields: [["exe", "Path", "/usr/bin"]], data: (values) => ({ exe: values.exe }) },
  { name: "Scan the disk", object: "scanner", type: 6057, fields: [["mode", "Mode", "quick"]], data: (values) => ({ mode: values.mode }) },
  { name: "Check the baseline", object: "baseline", type: 8000, fields: [["data", "Rules (JSON)", "{}"]], data: (values) => JSON.parse(values.data) },
  {
    name: "Another task", object: "", type: 0,
    fields: [["object", "Plugin, or elkeid-agent", ""], ["type", "Data type", ""], ["data", "Data", "{}"]],
    data: (values) => values.data,
  },
];

const STATES = { waiting: "idle", sent: "accent", answered: "good", failed: "bad" };

export function taskState(task) {
  const failed = task.answers?.some((answer) => answer.status === "failed");
  if (failed) return pill("bad", "failed");
  const state = task.state ?? (task.answers?.length ? "answered" : "sent");
  return pill(STATES[state] ?? "idle", state);
}

/** The file of an upload. The center gives hosts' files to nobody who only looks, so that the page says so and has no link for them. */
function uploaded({ id, len }) {
  const name = `the file (${bytes(len)})`;
  if (may("operate")) return h("a", { href: `/api/v1/uploads/${id}/file`, download: true }, name);
  return h("span", { class: "quiet" }, `${name}, which takes the role operate`);
}

function answerText(task) {
  const text = (task.answers ?? []).map((answer) => [answer.status, answer.msg].filter(Boolean).join(": ")).filter(Boolean);
  const file = task.upload && !task.upload.error && uploaded(task.upload);
  const failed = task.upload?.error && h("span", { class: "pill bad" }, task.upload.error);
  return [h("span", {}, text.join("; ")), text.length > 0 && file && " ", file, failed];
}

export async function tasks(page) {
  const agent = page.query.get("agent_id") ?? "";
  const rows = new Map();
  let next = null;
  const { hosts } = await get("/hosts", { limit: 1000 });
  const names = new Map(hosts.map((host) => [host.id, [host.hostname, shortId(host.id)].filter(Boolean).join(" ")]));
  const list = h("div");
  const foot = h("div", { class: "empty" });

  const columns = [
    { name: "Given", nowrap: true, cell: (task) => time(task.created_ms ?? task.sent_at * 1000) },
    { name: "Host", nowrap: true, cell: (task) => h("a", { href: `#/hosts/${encodeURIComponent(task.agent_id)}` }, names.get(task.agent_id) || task.agent_id.slice(0, 18)) },
    { name: "Task", nowrap: true, cell: (task) => [KNOWN.find((known) => known.type === task.data_type)?.name ?? `${task.data_type}`, " ", h("span", { class: "small quiet" }, task.name)] },
    { name: "State", cell: taskState },
    { name: "Answer", what: true, cell: answerText },
    { name: "By", cell: (task) => task.created_by },
  ];

  const draw = () => {
    const sorted = [...rows.values()].sort((a, b) => (b.id ?? 0) - (a.id ?? 0));
    fill(list, sorted.length ? table(columns, sorted) : h("p", { class: "empty" }, "No task was given yet."));
    fill(foot, next && h("button", { onclick: () => load(next) }, "Older tasks"));
    foot.hidden = !next;
  };

  const load = async (before) => {
    const answer = await get("/tasks", { agent_id: agent, before, limit: 100 });
    answer.tasks.forEach((task) => rows.set(task.token, task));
    next = answer.next ?? null;
    draw();
  };

  fill(page.main, h("div", { class: "headline" }, h("h1", {}, "Tasks"), agent && pill("accent", names.get(agent) || agent)),
    may("operate") && (await form(agent, hosts.filter((host) => host.connected), () => load())), h("section", { class: "panel" }, list, foot));
  await load();
  page.listen({}, {
    tasks: ({ tasks: changed }) => {
      changed.filter((task) => !agent || task.agent_id === agent).forEach((task) => rows.set(task.token, task));
      draw();
    },
  });
}

async function form(agent, hosts, done) {
  const groups = await get("/groups").catch(() => []);
  const targets = [
    ...groups.map((group) => [`group:${group.name}`, `Group ${group.name} (${group.connected} connected)`]),
    ...hosts.map((host) => [`host:${host.id}`, host.hostname ? `${host.hostname} (${shortId(host.id)})` : host.id]),
  ];
  const target = select(targets, `host:${agent}`, { required: true });
  const kind = select(KNOWN.map((known, index) => [String(index), known.name]), "0");
  const inputs = h("div", { class: "fields wide" });
  const warning = h("p", { class: "small quiet" });
  const drawInputs = () => {
    const known = KNOWN[Number(kind.value)];
    fill(inputs, known.fields.map(([name, text, value]) => field(text, name === "data" ? h("textarea", { name, value }) : h("input", { name, value, required: true }))));
    warning.textContent = known.warning ?? "";
  };
  kind.onchange = drawInputs;
  drawInputs();
  const button = h("button", { class: "primary", disabled: targets.length === 0 }, "Send");
  const submit = (event) => {
    event.preventDefault();
    busy(button, async () => {
      const known = KNOWN[Number(kind.value)];
      const values = Object.fromEntries([...inputs.querySelectorAll("[name]")].map((input) => [input.name, input.value]));
      const data = known.data(values);
      const task = {
        name: known.object || values.object, data_type: known.type || Number(values.type),
        data: typeof data === "string" ? data : JSON.stringify(data),
      };
      const [what, id] = target.value.split(/:(.*)/s);
      await send("POST", "/tasks", what === "group" ? { group: id, task } : { agent_id: id, task });
      toast(`${known.name}: sent`);
      await done();
    });
  };
  const fields = h("form", { class: "fields", onsubmit: submit }, field("To", target), field("Task", kind), inputs, warning, button);
  const none = h("p", { class: "quiet" }, "No host is connected that could be told to do something.");
  return panel("Give a task", null, h("div", { class: "body" }, targets.length ? fields : none));
}
