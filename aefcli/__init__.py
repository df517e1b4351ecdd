"""aef: the open toolkit for embedding fields of the Earth. The command line is `aefcli.cli`; the README has the map."""
