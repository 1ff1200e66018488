"""What worlds remember: pages (storage), slot tables (metadata), policy (MACO), and the memory that the engine uses."""
