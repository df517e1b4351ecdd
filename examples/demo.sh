#!/usr/bin/env bash
# From nothing to a map of embeddings and a table of scores, on a made-up landscape, in ./demo:
# simulate -> fetch -> train -> embed -> eval. Run by `make demo`.
set -euo pipefail
rm -rf demo
mkdir demo
cd demo

aef simulate . --seed 7
bbox=$(python -c "import json; print(*json.load(open('sentinel-2-c1-l2a/collection.json'))['extent']['spatial']['bbox'][0], sep=',')")
aef fetch --stac catalog.json --bbox "$bbox" --period 2023
aef train
aef embed cube.zarr --period 2023-01:2023-12
aef eval --probe all

echo
echo "The preview is demo/embeddings.png. The landscape is simulated: its scores say that the objective"
echo "learns from data like these, not how good the model is anywhere on Earth."
