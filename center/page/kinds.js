// What data types are, in words, and one line about a record.

import { NAMES } from "./names.js";

export function kindName(type) {
  return NAMES[type] ?? `type ${type}`;
}

export const KINDS = Object.entries(NAMES).map(([type, name]) => [Number(type), name]);

/** What the reference writes for a value that is not there. */
const MISSING = new Set(["", "-1", "-3", "-4", undefined]);

export function known(value) {
  return MISSING.has(value) ? null : value;
}

/** One line that says what happened. */
export function summary(record) {
  const f = record.fields;
  if (!f) return record.error ? `${record.raw_len} bytes that are no record: ${record.error}` : "";
  const program = known(f.exe) ?? known(f.comm) ?? "";
  const peer = (ip, port) => (known(f[ip]) ? `${f[ip]}:${f[port]}` : "");
  switch (record.data_type) {
    case 59: return known(f.argv) ?? program;
    case 60: case 231: return `${known(f.argv) ?? program} (${f.pid})`;
    case 42: return `${program} → ${peer("dip", "dport")}`;
    case 43: return `${program} ← ${peer("dip", "dport")}`;
    case 49: return `${program} on ${peer("sip", "sport")}`;
    case 62: case 200: return `${program} sends ${f.sig} to ${f.target_pid}`;
    case 82: case 86: return `${program}: ${f.old_name} → ${f.new_name}`;
    case 601: return `${program} asks for ${f.query}`;
    case 602: return `${program} creates ${f.file_path}`;
    case 1000: return `CPU ${(Number(f.cpu) * 100).toFixed(1)} %, ${Math.round(Number(f.rss) / 1048576)} MiB, state ${f.state ?? "?"}`;
    case 1001: return `${f.name} ${f.pversion}: CPU ${(Number(f.cpu) * 100).toFixed(1)} %, ${Math.round(Number(f.rss) / 1048576)} MiB`;
    case 1010: case 1011: return [f.level, f.plugin, f.msg].filter(Boolean).join(": ");
    case 5100: return [f.status, f.msg].filter(Boolean).join(": ");
    default: {
      const rest = Object.entries(f).filter(([, value]) => known(value) !== null).slice(0, 6);
      return rest.map(([name, value]) => `${name}=${value}`).join(" ").slice(0, 300);
    }
  }
}
