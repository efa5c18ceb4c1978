"""What every room uses: errors, console, files, strict JSON, clock, device, shapes."""
