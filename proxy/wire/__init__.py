"""Wire formats between processes of Exeat and with the kernel."""
