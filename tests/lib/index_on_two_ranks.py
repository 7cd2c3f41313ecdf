"""Run by two ranks: both ask for the index of one file. Arguments: the data file, a folder for what each rank finds."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from counting import Counting

from switchkd.data.formats import load_rows
from switchkd.data.index import build_index

data, folder = map(Path, sys.argv[1:])
state = PartialState(cpu=True)
rows = build_index(load_rows(data), Counting(folder, name=f"encoded-{state.process_index}.txt")).rows
(folder / f"rows-{state.process_index}.json").write_text(json.dumps(rows["key"][:]))
state.wait_for_everyone()
