"""The controller's side of mitogen-mux inside Ansible: thin translations between Ansible and the daemon."""
