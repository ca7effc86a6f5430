// Letting hosts in, and keeping them out.

import { get, send } from "./api.js";
import { ask, busy, field, fill, h, panel, pill, table, time, toast } from "./dom.js";

const TIMES = [["3600", "an hour"], ["86400", "a day"], ["604800", "7 days"], ["2592000", "30 days"]];

/** Tokens, for the settings. */
export async function enrolmentPanel() {
  const body = h("div");
  const load = async () => {
    const tokens = (await get("/tokens")).filter((token) => token.usable);
    fill(body, tokens.length ? table(columns, tokens) : h("p", { class: "empty" }, "No token lets a host in now."));
  };
  const enrol = async () => {
    const names = (await get("/groups")).map((group) => h("option", { value: group.name }));
    const form = await ask("Enrol hosts", [
      field("Hosts", h("input", { name: "uses", type: "number", min: 1, max: 10000, value: "1", required: true })),
      field("Within", h("select", { name: "ttl_s" }, TIMES.map(([value, text]) => h("option", { value }, text)))),
      field("Group", h("input", { name: "group", list: "groups-of-newcomers", autocomplete: "off" }), "Empty: none. A name that is new makes a group."),
      h("datalist", { id: "groups-of-newcomers" }, names),
    ], "Make a token");
    if (!form) return;
    const wanted = { uses: Number(form.uses), ttl_s: Number(form.ttl_s), group: form.group || null };
    const { command } = await send("POST", "/tokens", wanted);
    await Promise.all([load(), show(command)]);
  };
  const revoke = async (token) => {
    if (!(await ask("Revoke this token?", [h("p", {}, "Hosts that it has let in stay.")], "Revoke", true))) return;
    await send("DELETE", `/tokens/${token.id}`);
    await load();
  };
  const columns = [
    { name: "Token", cell: (token) => token.id },
    { name: "Used", cell: (token) => `${token.used} of ${token.uses}` },
    { name: "Group", cell: (token) => token.group },
    { name: "Until", cell: (token) => time(token.expires_ms) },
    { name: "By", cell: (token) => token.created_by },
    { name: "", num: true, cell: (token) => h("button", { class: "danger plain", onclick: (event) => busy(event.currentTarget, () => revoke(token)) }, "Revoke") },
  ];
  await load();
  const button = h("button", { class: "primary push", onclick: (event) => busy(event.currentTarget, enrol) }, "Enrol a host");
  return panel("Enrolment", button, body);
}

/** Shows the line with the token, which the center shows once. */
async function show(command) {
  const line = h("textarea", { readonly: true, rows: 4, "aria-label": "The line to run" });
  line.value = command;
  const copied = await ask("Run this on the host", [line, h("p", { class: "small quiet" }, "It has the token, and is shown only now.")], "Copy");
  if (!copied) return;
  try {
    await navigator.clipboard.writeText(command);
    toast("The line was copied");
  } catch {
    // Browsers keep the clipboard from pages without TLS.
    toast("The browser does not let this page copy: mark the line instead", true);
    await show(command);
  }
}

/** The certificates that the center has given a host, if there are any. */
export async function certificatesPanel(id) {
  const place = h("div");
  const load = async () => {
    const { certificates } = await get("/certificates", { agent_id: id, limit: 5 });
    place.hidden = !certificates.length;
    if (!certificates.length) return;
    const good = certificates.some((certificate) => !certificate.revoked_ms && certificate.expires_ms > Date.now());
    const button = good && h("button", { class: "danger push", onclick: (event) => busy(event.currentTarget, revoke) }, "Revoke");
    fill(place, panel("Certificates", button, table(columns, certificates)));
  };
  const revoke = async () => {
    const sure = await ask("Keep this host out?", [h("p", {}, "Its stream ends at once. It takes another token to let it in again.")], "Revoke", true);
    if (!sure) return;
    await send("POST", `/certificates/${encodeURIComponent(id)}/revoke`);
    toast("The host is kept out");
    await load();
  };
  const state = ({ revoked_ms: revoked, revoked_by: by, expires_ms: end }) => {
    if (revoked) return [pill("bad", "revoked"), ` by ${by}, `, time(revoked)];
    return end > Date.now() ? pill("good", "valid") : pill("idle", "over");
  };
  const columns = [
    { name: "Issued", cell: (certificate) => time(certificate.issued_ms) },
    { name: "Until", cell: (certificate) => time(certificate.expires_ms) },
    { name: "For", cell: (certificate) => (certificate.token ? `token ${certificate.token}` : "the one before") },
    { name: "State", cell: state },
    { name: "Serial", what: true, cell: (certificate) => h("code", {}, certificate.serial) },
  ];
  await load();
  return place;
}
