// Reads a compose file with the library that Docker Compose reads it with, all profiles on; fails where it is not valid, where
// a file that it mounts is not there, or where a service that is ours gives up a protection. Prints the services.
//
// usage: compose FILE
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "compose:", err)
		os.Exit(1)
	}
}

func run(file string) error {
	options, err := cli.NewProjectOptions([]string{file}, cli.WithProfiles([]string{"*"}), cli.WithConsistency(true))
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	var wrong []string
	for name, service := range project.Services {
		for _, volume := range service.Volumes {
			if _, err := os.Stat(volume.Source); volume.Type == types.VolumeTypeBind && err != nil {
				wrong = append(wrong, fmt.Sprintf("%s mounts what is not there: %v", name, err))
			}
		}
		for _, port := range service.Ports {
			if port.HostIP != "127.0.0.1" {
				wrong = append(wrong, fmt.Sprintf("%s publishes %s beyond loopback", name, port.Published))
			}
		}
		if tag := service.Image[strings.LastIndex(service.Image, ":")+1:]; tag == service.Image || tag == "latest" {
			wrong = append(wrong, fmt.Sprintf("%s has an image without a version", name))
		}
		ours := strings.HasPrefix(service.Image, "p8broker:")
		if ours && !(service.ReadOnly && service.User == "65532:65532" && len(service.CapDrop) == 1 && service.CapDrop[0] == "ALL") {
			wrong = append(wrong, fmt.Sprintf("%s is not confined", name))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%s", strings.Join(wrong, "; "))
	}
	fmt.Println(strings.Join(project.ServiceNames(), " "))
	return nil
}
