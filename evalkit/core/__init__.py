"""What everyone may use: options, types, errors, files, text, secrets, signals, progress, words."""
