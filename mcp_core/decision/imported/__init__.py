"""Result files of other tools, one file a kind: JSON in, ImportedRow out. Each says how its metrics are defined."""
