module nodeless.dev/tarjudge

go 1.21
