"""The backend for Isaac Lab: `backend` serves, `lab3` and `lab2` start it, `scene` reads and writes its states."""
