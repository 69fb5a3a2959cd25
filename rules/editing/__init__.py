"""Rules added to rule files: by `--as-rule` of an approval, and by `exeat explain --suggest`."""
