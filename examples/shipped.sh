#!/usr/bin/env bash
# The model that comes with aef, anew from nothing: simulate -> fetch -> train -> aefcli/shipped/nano.
# Run by `make shipped`, in build/shipped; cut off, it goes on when it is run again.
#
# The world of this seed is of no suite, bench or example: what is scored there was not learned here.
set -euo pipefail
home=$PWD/aefcli/shipped/nano
mkdir -p build/shipped
cd build/shipped

[ -e world ] || aef simulate world --seed 300 --sites 144 --years 2022:2023
bbox=$(python -c "import json; print(*json.load(open('world/sentinel-2-c1-l2a/collection.json'))['extent']['spatial']['bbox'][0], sep=',')")
aef fetch --stac world/catalog.json --bbox "$bbox" --period 2022:2023 --out cube.zarr

if [ -e nano/data.json ]; then
  aef train --resume --out nano
else
  aef train cube.zarr --recipe nano --steps 400 --set train.agree=144 --set train.encoder_lr=1e-5 --out nano
fi
mkdir -p "$home"
cp nano/model.safetensors nano/recipe.toml nano/card.md "$home"
sed 's|"path": ".*/|"path": "|' nano/data.json > "$home/data.json" # what it learned from, for `aef eval --suite`
