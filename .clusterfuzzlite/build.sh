#!/bin/bash
# ClusterFuzzLite runs this in its image. It sets SRC, where the sources are, and OUT, where it looks for targets and their seeds.
set -euo pipefail
cd "$SRC/elklet"

cargo fuzz build -O --debug-assertions

cargo fuzz list | while read -r target; do
  cp "fuzz/target/x86_64-unknown-linux-gnu/release/$target" "$OUT/"
  # A target called NAME begins with what is in NAME_seed_corpus.zip. A new target may have no seeds yet.
  if compgen -G "fuzz/corpus/$target/seed-*" >/dev/null; then
    zip --quiet --junk-paths "$OUT/${target}_seed_corpus.zip" "fuzz/corpus/$target"/seed-*
  fi
  # AddressSanitizer keeps freed memory aside, see fuzz/README.md.
  printf '[libfuzzer]\nrss_limit_mb = 1024\n' >"$OUT/$target.options"
done
