"""Where model files come from: one TOML file each, with version, hashes, licence and conversion options."""
